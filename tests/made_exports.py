"""An export as one leaves it, of models that nothing has trained: for what uses a trained model and needs no training."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import save_file

from kappaspeech.artefacts import write_json
from kappaspeech.trained.difference import ADAPTOR_FILE, SPEECH_FILE, SpeechParts
from tests.parity.steps import Case, build_parts


def make_export(folder: Path, home: Path, *, loudness: float = 20.0) -> Path:
    """The tiny models of `home` in float32, with weights so large that texts depend on what is heard."""
    parts = build_parts(home, Case())
    with torch.no_grad():
        for parameter in parts.model.llm.parameters():
            parameter.mul_(3)
        parts.model.adaptor.output_norm.weight.mul_(loudness)
    parts.model.llm.save_pretrained(folder)
    parts.tokenizer.save_pretrained(folder)
    save_file(parts.model.adaptor.state_dict(), folder / ADAPTOR_FILE)
    speech = SpeechParts(
        encoder=str(home / "whisper.pt"),
        pad_to_30s=False,
        instruction="Transcribe.",
        chat_template=True,
        dtype="float32",
        adaptor=parts.model.adaptor.shape,
        encoder_dtype="float32",
        prompt=parts.prompt.to_json(),
    )
    write_json(folder / SPEECH_FILE, speech.to_json())
    return folder
