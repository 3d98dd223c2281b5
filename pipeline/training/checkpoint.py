"""Checkpoints that hold what was trained: its float32 weights, Adam's moments, and fingerprints of all that was not.

A checkpoint is a folder that appears by one rename, so a kill at any instant leaves the last good one. Tensors are kept
whole, not as partitions: any number of ranks can resume from them.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from pipeline.artefacts import read_json, sync_folder, write_json
from pipeline.cluster import Cluster, agreement
from pipeline.errors import CheckpointError, TrainingError
from pipeline.training.engine import ADAM_STATES, TrainingEngine
from pipeline.training.tensor_file import TensorFileWriter

SCHEMA_VERSION = 1
_NAME = re.compile(r"step-(\d{6,})")
# weights and two moments in float32
_BYTES_PER_PARAMETER = 12


def save(engine: TrainingEngine, cluster: Cluster, folder: Path, *, step: int, state: Mapping[str, Any], keep: int) -> Path:
    """Write `folder`/step-NNNNNN, then remove all but the newest `keep`. A collective.

    `state` is JSON. Raises `TrainingError` on every rank where rank 0 can't write; older checkpoints are untouched then.
    """
    target = folder / f"step-{step:06d}"
    temporary = folder / f".{target.name}.tmp"
    shapes = engine.trained_shapes()
    writer = cluster.rank == 0
    with agreement(cluster):
        if writer:
            _check_space(folder, shapes)
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir(parents=True)
    moments = {f"{name}/{kind}": shape for name, shape in shapes.items() for kind in ADAM_STATES}
    _write_all(cluster, temporary / "trained.safetensors", shapes, engine.gather_trained())
    named = ((f"{name}/{kind}", tensor) for name, kind, tensor in engine.gather_optimizer())
    _write_all(cluster, temporary / "optimizer.safetensors", moments, named)
    with agreement(cluster):
        if writer:
            write_json(temporary / "state.json", {"schema_version": SCHEMA_VERSION, "step": step, **state})
            shutil.rmtree(target, ignore_errors=True)
            temporary.rename(target)
            sync_folder(folder)
            for old in list_checkpoints(folder)[:-keep]:
                shutil.rmtree(old)
    return target


def _check_space(folder: Path, shapes: Mapping[str, tuple[int, ...]]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    needed = _BYTES_PER_PARAMETER * sum(int(torch.Size(shape).numel()) for shape in shapes.values())
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise TrainingError(
            f"A checkpoint needs {needed / 1e9:.2f} GB in {folder}, where {free / 1e9:.2f} GB are free. Make room and start the "
            "same command again: it continues from the last checkpoint."
        )


def _write_all(
    cluster: Cluster, path: Path, shapes: Mapping[str, tuple[int, ...]], tensors: Iterator[tuple[str, Tensor]]
) -> None:
    """Rank 0 writes what all ranks gather. A write that fails must not keep rank 0 from the gathers still to come."""
    failure: OSError | None = None
    file = TensorFileWriter(path, shapes, dtype=torch.float32) if cluster.rank == 0 else None
    for name, tensor in tensors:
        if file is not None and failure is None:
            try:
                file.add(name, tensor)
            except OSError as error:
                failure = error
    with agreement(cluster):
        if file is not None:
            try:
                if failure is not None:
                    raise failure
                file.close()
            except OSError as error:
                file.abandon()
                raise TrainingError(f"{path} can't be written: {error}. Older checkpoints beside it are whole.") from error


def list_checkpoints(folder: Path) -> list[Path]:
    """Complete checkpoints, oldest first."""
    if not folder.is_dir():
        return []
    found = [(int(match[1]), path) for path in folder.iterdir() if (match := _NAME.fullmatch(path.name))]
    return [path for _, path in sorted(found)]


def read_state(checkpoint: Path) -> dict[str, Any]:
    """The JSON that `save` was given, with `step`. Raises `InputError`."""
    return read_json(checkpoint / "state.json", schema_version=SCHEMA_VERSION)


def check_fingerprints(checkpoint: Path, saved: Mapping[str, str], current: Mapping[str, str]) -> None:
    """Raise `CheckpointError`, by name, where what a checkpoint doesn't hold has changed since it was written."""
    changed = [name for name in current if saved.get(name) != current[name]]
    if changed:
        details = "; ".join(f"{name} was {str(saved.get(name))[:12]}, is {current[name][:12]}" for name in changed)
        raise CheckpointError(
            f"{checkpoint} was trained with another {', '.join(changed)} ({details}). Resume with what it was trained with, or "
            "train into another run_dir."
        )


def restore(engine: TrainingEngine, checkpoint: Path, *, num_updates: int) -> None:
    """Put a checkpoint's tensors back into the engine, on any number of ranks. A collective."""
    try:
        with (
            safe_open(checkpoint / "trained.safetensors", framework="pt") as weights,
            safe_open(checkpoint / "optimizer.safetensors", framework="pt") as moments,
        ):
            engine.restore(weights.get_tensor, lambda name, kind: moments.get_tensor(f"{name}/{kind}"), num_updates=num_updates)
    except OSError as error:
        raise CheckpointError(f"{checkpoint} can't be read: {error}. Remove it to resume from the one before.") from error


def read_trained(checkpoint: Path) -> dict[str, Tensor]:
    """The trained tensors by their names in `SpeechLLM`, float32."""
    from safetensors.torch import load_file

    try:
        tensors: dict[str, Tensor] = load_file(checkpoint / "trained.safetensors")
    except OSError as error:
        raise CheckpointError(f"{checkpoint} holds no readable trained.safetensors: {error}") from error
    return tensors
