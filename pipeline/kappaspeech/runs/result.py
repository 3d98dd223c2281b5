"""The result of a run: its base model and the weights of its last checkpoint, as a scan takes them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from kappaspeech.errors import CheckpointError
from kappaspeech.outside import explained, read_json_file
from kappaspeech.runs.checkpoints import find_weights, list_checkpoints
from kappaspeech.runs.contents import CHECKPOINTS_FOLDER, CONFIG_FILE, RECORD_FILE

if TYPE_CHECKING:
    from kappaspeech.model.lora import LoraShape

_MAX_RECORD_BYTES = 16 << 20


@dataclass(frozen=True)
class RunResult:
    """A run's base model, the file of its resulting weights, and how they become the LLM's tensors. None: the run doesn't say."""

    base: str
    base_digest: str | None
    trained: Path
    dtype: str | None
    lora: LoraShape | None


def read_result(folder: Path) -> RunResult:
    """The result in a run's last checkpoint. Raises `CheckpointError`."""
    # its factors' shapes need torch, which no scan of a base does
    from kappaspeech.model.lora import lora_from_record

    with explained(f"{folder / CONFIG_FILE} doesn't name the run's model", kind=CheckpointError):
        base = read_json_file(folder / CONFIG_FILE, most_bytes=_MAX_RECORD_BYTES)["model"]["llm"]
        if not isinstance(base, str):
            raise ValueError(f"model.llm is {base!r}")
    with explained(f"{folder / RECORD_FILE} doesn't say what the run did", kind=CheckpointError):
        record = read_json_file(folder / RECORD_FILE, most_bytes=_MAX_RECORD_BYTES)
        lora = lora_from_record(record.get("lora"))
        dtype, digest = record.get("dtype"), record.get("checkpoint_digest")
        if not all(value is None or isinstance(value, str) for value in (dtype, digest)):
            raise ValueError(f"dtype is {dtype!r} and checkpoint_digest {digest!r}")
    found = list_checkpoints(folder / CHECKPOINTS_FOLDER)
    if not found:
        raise CheckpointError(f"{folder} is a run without a checkpoint yet. Scan its base model {base} instead.")
    return RunResult(base, digest, find_weights(found[-1]), dtype, lora)
