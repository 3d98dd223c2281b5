"""An export in one model, opened for use here: the class is the package's own, so no code of the folder runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from kappaspeech.errors import CheckpointError
from kappaspeech.model.encoder import FrozenWhisperEncoder, SpeechEncoder
from kappaspeech.model.family import LOADING_ERRORS
from kappaspeech.model.speech_llm import SpeechLLM
from kappaspeech.speech.prompt import SpeechPrompt
from kappaspeech.tensor_files.weight_files import read_config
from kappaspeech.trained.arithmetic import UseArithmetic

_MODEL_TYPE = "kappaspeech"


def is_whole(folder: Path) -> bool:
    """Return whether `folder` is an export in one model."""
    return folder.is_dir() and (read_config(folder) or {}).get("model_type") == _MODEL_TYPE


def load_whole(folder: Path, use: UseArithmetic) -> tuple[SpeechLLM, SpeechEncoder, Any, SpeechPrompt, bool]:
    """Model, encoder, tokenizer, prompt and whether it is the chat template's, of an export in one model. Raises
    `CheckpointError`."""
    from kappaspeech.portable.modeling_kappaspeech import KappaSpeechModel
    from kappaspeech.portable.processing_kappaspeech import KappaSpeechProcessor

    try:
        trained_in = str((read_config(folder) or {})["trained_in"])
        whole = KappaSpeechModel.from_pretrained(folder, dtype=use.dtype(trained_in))
        tokenizer = KappaSpeechProcessor.from_pretrained(folder).tokenizer
    except LOADING_ERRORS as error:
        raise CheckpointError(f"{folder} can't be loaded as an export in one model: {error} Export it again.") from error
    encoder = FrozenWhisperEncoder(whole.encoder.whisper, whole.encoder.dims, pad_to_30s=whole.encoder.pad_to_30s)
    model = SpeechLLM(whole.adaptor, whole.llm).eval().requires_grad_(False)
    prompt = whole.config.prompt
    # versions that knew one instruction alone wrote none
    return model, encoder, tokenizer, SpeechPrompt.from_json(prompt), bool(prompt.get("chat_template", True))
