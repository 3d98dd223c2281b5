"""An export in one model, opened for use here: the class is the package's own, so no code of the folder runs."""

from __future__ import annotations

from dataclasses import dataclass
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


@dataclass(frozen=True)
class LoadedParts:
    """A model's parts, and the number of beams that its training was evaluated with."""

    model: SpeechLLM
    encoder: SpeechEncoder
    tokenizer: Any
    prompt: SpeechPrompt
    chat_template: bool
    num_beams: int


def is_whole(folder: Path) -> bool:
    """Return whether `folder` is an export in one model."""
    return folder.is_dir() and (read_config(folder) or {}).get("model_type") == _MODEL_TYPE


def load_whole(folder: Path, use: UseArithmetic) -> LoadedParts:
    """The parts of an export in one model. Raises `CheckpointError`."""
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
    chat = bool(prompt.get("chat_template", True))
    # transformers leaves a default out
    num_beams = whole.generation_config.num_beams or 1
    return LoadedParts(model, encoder, tokenizer, SpeechPrompt.from_json(prompt), chat, num_beams)
