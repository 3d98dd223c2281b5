"""An engine's state to a checkpoint's files, and back on any number of ranks. `runs/checkpoints.py` defines a checkpoint."""

from __future__ import annotations

import shutil
import socket
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from kappaspeech.artefacts import sync_folder, write_json
from kappaspeech.errors import CheckpointError, TrainingError
from kappaspeech.ranks.agreement import agreement
from kappaspeech.ranks.cluster import Cluster
from kappaspeech.runs.checkpoints import AVERAGE_FILE, OPTIMIZER_FILE, SCHEMA_VERSION, STATE_FILE, TRAINED_FILE, prune
from kappaspeech.runs.contents import checkpoint_path
from kappaspeech.tensor_files.safetensors_writer import SafetensorsWriter
from kappaspeech.zero3.engine import ADAM_STATES, TrainingEngine, Updates

Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class _Content:
    """One file of a checkpoint: its tensors' shapes, and the function that gathers them in that order, a collective."""

    name: str
    shapes: Shapes
    gather: Callable[[], Iterator[tuple[str, Tensor]]]

    @property
    def num_bytes(self) -> int:
        return torch.float32.itemsize * sum(int(torch.Size(shape).numel()) for shape in self.shapes.values())


def save(
    engine: TrainingEngine,
    cluster: Cluster,
    folder: Path,
    *,
    step: int,
    state: Mapping[str, Any],
    keep: int,
    on_progress: Callable[[], None] = lambda: None,
) -> Path:
    """Write `folder`/step-NNNNNN, then remove all but the newest `keep` and the one marked as best. A collective.

    `state` is JSON; `on_progress` is called after each tensor. Raises `TrainingError` on every rank if rank 0 can't write; older
    checkpoints are then untouched.
    """
    target = checkpoint_path(folder, step)
    temporary = folder / f".{target.name}.tmp"
    contents = _contents(engine)
    writer = cluster.rank == 0
    with agreement(cluster), _explaining(target):
        if writer:
            _check_space(folder, sum(content.num_bytes for content in contents))
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir(parents=True)
    files = {content.name: _write_all(cluster, temporary / content.name, content, target, on_progress) for content in contents}
    with agreement(cluster), _explaining(target):
        if writer:
            write_json(temporary / STATE_FILE, {"schema_version": SCHEMA_VERSION, "step": step, **state, "files": files})
            temporary.rename(target)
            sync_folder(folder)
            prune(folder, keep=keep)
    return target


def _contents(engine: TrainingEngine) -> list[_Content]:
    shapes = engine.trained_shapes()
    moments = {f"{name}/{kind}": shape for name, shape in shapes.items() for kind in ADAM_STATES}

    def gather_moments() -> Iterator[tuple[str, Tensor]]:
        return ((f"{name}/{kind}", tensor) for name, kind, tensor in engine.gather_optimizer())

    contents = [_Content(TRAINED_FILE, shapes, engine.gather_trained), _Content(OPTIMIZER_FILE, moments, gather_moments)]
    return [*contents, _Content(AVERAGE_FILE, shapes, engine.gather_average)] if engine.keeps_average else contents


@contextmanager
def _explaining(path: Path) -> Iterator[None]:
    """Turn an `OSError` of writing a checkpoint into a `TrainingError` that names it, and says what is safe."""
    try:
        yield
    except OSError as error:
        raise TrainingError(
            f"{path} can't be written: {error}. Older checkpoints beside it are whole: make room or mend the disk, and start the "
            "same command again."
        ) from error


def _check_space(folder: Path, needed: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise TrainingError(
            f"A checkpoint needs {needed / 1e9:.3g} GB in {folder}, where {free / 1e9:.3g} GB are free. Make room and start the "
            "same command again: it continues from the last checkpoint."
        )


def _write_all(cluster: Cluster, path: Path, content: _Content, target: Path, on_progress: Callable[[], None]) -> dict[str, int]:
    """Write on rank 0 the tensors that all ranks gather; return the number of bytes and their checksum, as rank 0 knows them.

    `target` is for errors. A write that fails must not keep rank 0 from the gathers still to come.
    """
    failure: OSError | None = None
    checksum = 0
    file: SafetensorsWriter | None = None
    with agreement(cluster), _explaining(target):
        if cluster.rank == 0:
            file = SafetensorsWriter(path, content.shapes, dtype=torch.float32)
    for name, tensor in content.gather():
        if file is not None and failure is None:
            try:
                file.add(name, tensor)
                checksum = zlib.crc32(tensor.contiguous().flatten().view(torch.uint8).numpy().data, checksum)
            except OSError as error:
                failure = error
        on_progress()
    with agreement(cluster), _explaining(target):
        if file is not None:
            try:
                if failure is not None:
                    raise failure
                file.close()
            except OSError:
                with suppress(OSError):
                    file.abandon()
                raise
    return {"num_bytes": path.stat().st_size, "crc32": checksum} if cluster.rank == 0 else {}


def restore(engine: TrainingEngine, checkpoint: Path, cluster: Cluster, *, num_updates: Updates) -> None:
    """Put a checkpoint's tensors back into the engine, on any number of ranks. A collective.

    Raises `CheckpointError` on every rank if one can't open the files.
    """
    with ExitStack() as files:
        with agreement(cluster):
            try:
                names = (TRAINED_FILE, OPTIMIZER_FILE, *([AVERAGE_FILE] if engine.keeps_average else []))
                weights, moments, *average = (files.enter_context(safe_open(checkpoint / name, framework="pt")) for name in names)
            except (OSError, SafetensorError) as error:
                raise CheckpointError(
                    f"{checkpoint} can't be read on {socket.gethostname()}: {error}. Every host needs run_dir on a file system "
                    "that all share."
                ) from error
        engine.restore(
            weights.get_tensor,
            lambda name, kind: moments.get_tensor(f"{name}/{kind}"),
            average[0].get_tensor if average else None,
            num_updates=num_updates,
        )
