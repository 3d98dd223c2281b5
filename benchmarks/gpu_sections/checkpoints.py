"""Checkpoints of random weights on disk: a Llama of any shape, and a Whisper, as their real ones lie."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kappaspeech.artefacts import write_json

_FILE_BYTES = 2 << 30
_STD = 0.02


def write_llama(folder: Path, shape: dict[str, Any], device: torch.device, **changes: Any) -> int:
    """A bfloat16 Llama in files of about 2 GiB with their index and config.json. Returns its bytes."""
    from safetensors.torch import save_file
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(**shape, **changes, dtype="bfloat16", architectures=["LlamaForCausalLM"])
    config.save_pretrained(folder)
    with torch.device("meta"):
        shapes = {name: p.shape for name, p in LlamaForCausalLM(config).named_parameters()}
    generator = torch.Generator(device).manual_seed(0)
    places: dict[str, str] = {}
    waiting: dict[str, Tensor] = {}
    total = 0

    def flush() -> None:
        if waiting:
            name = f"model-{len(set(places.values())) + 1:05d}.safetensors"
            save_file(waiting, folder / name, metadata={"format": "pt"})
            places.update(dict.fromkeys(waiting, name))
            waiting.clear()

    for name, size in shapes.items():
        values = torch.empty(size, dtype=torch.bfloat16, device=device)
        values = values.fill_(1.0) if len(size) == 1 else values.normal_(std=_STD, generator=generator)
        waiting[name] = values.cpu()
        total += values.nbytes
        if sum(tensor.nbytes for tensor in waiting.values()) > _FILE_BYTES:
            flush()
    flush()
    write_json(folder / "model.safetensors.index.json", {"metadata": {"total_size": total}, "weight_map": places})
    return total


def write_whisper(path: Path, encoder: tuple[int, int, int, int]) -> None:
    """An openai-whisper checkpoint with an encoder of (mels, width, heads, layers), and a decoder that nobody uses."""
    from whisper.model import ModelDimensions, Whisper

    num_mels, width, heads, layers = encoder
    dims = ModelDimensions(num_mels, 1500, width, heads, layers, 51865, 16, width, heads, 1)
    torch.manual_seed(0)
    torch.save({"dims": asdict(dims), "model_state_dict": Whisper(dims).half().state_dict()}, path)
