"""A training run of ours as a checkpoint: the base model, with what the run trained in its place."""

from __future__ import annotations

import json
import re
from pathlib import Path

from pipeline.errors import CheckpointError
from pipeline.scan.dtypes import StoredArray
from pipeline.scan.safetensors_file import SafetensorsFile, StoredTensor

_LLM_PREFIX = "llm."
_STEP = re.compile(r"step-\d{6,}")


class TrainedFile:
    """The LLM's tensors of a run's `trained.safetensors`, under the names that they have in the LLM."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = SafetensorsFile(path)
        self.tensors = [
            StoredTensor(tensor.name.removeprefix(_LLM_PREFIX), tensor.shape, tensor.dtype, tensor.num_bytes, tensor.storage)
            for tensor in self._file.tensors
            if tensor.name.startswith(_LLM_PREFIX)
        ]

    def read(self, name: str, start: int, stop: int) -> StoredArray:
        return self._file.read(_LLM_PREFIX + name, start, stop)

    def read_bytes(self, name: str, offset: int, size: int) -> bytes:
        return self._file.read_bytes(_LLM_PREFIX + name, offset, size)


def is_run(folder: Path) -> bool:
    """Whether `folder` is the folder of a training run."""
    return (folder / "run.json").exists() and (folder / "config.json").exists()


def find_run_parts(folder: Path) -> tuple[str, Path]:
    """The base model that a run began from, and its last `trained.safetensors`. Raises `CheckpointError`."""
    try:
        base = str(json.loads((folder / "config.json").read_text(encoding="utf-8"))["model"]["llm"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{folder / 'config.json'} doesn't name the run's model: {error!r}.") from error
    steps = sorted(path for path in (folder / "checkpoints").glob("step-*") if _STEP.fullmatch(path.name))
    if not steps:
        raise CheckpointError(f"{folder} is a run without a checkpoint yet. Scan its base model {base} instead.")
    latest = max(steps, key=lambda path: int(path.name.removeprefix("step-")))
    return base, latest / "trained.safetensors"
