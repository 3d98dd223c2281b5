"""Checkpoints that hold what was trained: its float32 weights, Adam's moments, and fingerprints of all that was not.

A checkpoint is a folder that appears by one rename, so a kill at any instant leaves the last good one. Tensors are kept
whole, not as partitions: any number of ranks can resume from them. One that its disk has damaged is known by its files'
sizes and checksums. Retention and choice are here; `best.py` knows the one of lowest WER.
"""

from __future__ import annotations

import re
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

from kappaspeech.artefacts import read_json, sync_folder, write_json
from kappaspeech.errors import CheckpointError, InputError, TrainingError
from kappaspeech.escaping import make_logger
from kappaspeech.outputs import sweep
from kappaspeech.ranks.agreement import agreement
from kappaspeech.ranks.cluster import Cluster
from kappaspeech.tensor_files.safetensors_writer import SafetensorsWriter
from kappaspeech.training.best import read_best, repair_best
from kappaspeech.training.engine import ADAM_STATES, TrainingEngine

SCHEMA_VERSION = 1
STATE_FILE, TRAINED_FILE, OPTIMIZER_FILE = "state.json", "trained.safetensors", "optimizer.safetensors"
AVERAGE_FILE = "average.safetensors"
_NAME = re.compile(r"step-(\d{6,})")
_BLOCK_BYTES = 1 << 24
# fingerprints that checkpoints of versions before this one lack
_NEWER = ("prompt",)

_log = make_logger(__name__)
Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class _Content:
    """One file of a checkpoint: its tensors' shapes, and what gathers them in that order, a collective."""

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

    `state` is JSON; `on_progress` is called after each tensor. Raises `TrainingError` on every rank where rank 0 can't write;
    older checkpoints are untouched then.
    """
    target = folder / f"step-{step:06d}"
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
            _prune(folder, keep=keep)
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
    """Turns an `OSError` of writing a checkpoint into a `TrainingError` that says which one, and what is safe."""
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
    """Rank 0 writes what all ranks gather; how many bytes, and their checksum, as rank 0 knows them. `target` is for errors.

    A write that fails must not keep rank 0 from the gathers still to come.
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


def _prune(folder: Path, *, keep: int) -> None:
    best = read_best(folder)
    for old in list_checkpoints(folder)[:-keep]:
        if old != best:
            # a kill in the middle mustn't leave half a folder under a whole one's name
            shutil.rmtree(old.rename(folder / f".{old.name}.tmp"))


def list_checkpoints(folder: Path) -> list[Path]:
    """Complete checkpoints, oldest first."""
    if not folder.is_dir():
        return []
    found = [(int(match[1]), path) for path in folder.iterdir() if (match := _NAME.fullmatch(path.name))]
    return [path for _, path in sorted(found)]


def prepare_resume(folder: Path, *, find_fault: Callable[[Mapping[str, Any]], str | None] = lambda _: None) -> Path | None:
    """Clear away what killed saves left, and choose the newest whole checkpoint; None where there has never been one.

    `find_fault` says what a checkpoint's state lacks.
    A checkpoint that its disk has damaged is set aside under the name damaged-step-…, with a warning, and the one before is
    used: the steps between are trained again, on the same samples. Raises `CheckpointError` where none is whole, for a run that
    silently began again would be worse. For one rank alone.
    """
    for leftover in folder.glob(".step-*.tmp"):
        shutil.rmtree(leftover)
    sweep(folder)
    repair_best(folder)
    damaged: list[tuple[Path, str]] = []
    for checkpoint in reversed(list_checkpoints(folder)):
        damage = find_damage(checkpoint, find_fault=find_fault)
        if damage is None:
            for broken, cause in damaged:
                aside = broken.with_name(f"damaged-{broken.name}")
                shutil.rmtree(aside, ignore_errors=True)
                broken.rename(aside)
                _log.warning("%s is damaged (%s): set aside as %s; going on from %s.", broken, cause, aside.name, checkpoint.name)
            return checkpoint
        damaged.append((checkpoint, damage))
    if damaged:
        listing = "; ".join(f"{checkpoint.name}: {cause}" for checkpoint, cause in damaged)
        raise CheckpointError(
            f"No checkpoint in {folder} is whole ({listing}). Bring one back from a copy, or remove the folder to train from the "
            "beginning."
        )
    return None


def find_damage(checkpoint: Path, *, find_fault: Callable[[Mapping[str, Any]], str | None] = lambda _: None) -> str | None:
    """What keeps a checkpoint from being used, None where it is whole: a file that is missing, cut, or has other bytes."""
    try:
        state = read_state(checkpoint)
        if (fault := find_fault(state)) is not None:
            return fault
        if state["step"] != int(checkpoint.name.removeprefix("step-")):
            return f"state.json is of step {state['step']}"
        for name, expected in state["files"].items():
            path = checkpoint / name
            if path.stat().st_size != expected["num_bytes"]:
                return f"{name} has {path.stat().st_size} bytes, of {expected['num_bytes']}"
            with safe_open(path, framework="pt"):
                pass  # its header can be read
            if _checksum_of_tensors(path) != expected["crc32"]:
                return f"{name} isn't what was written"
    except (InputError, OSError, SafetensorError) as error:
        return str(error)
    except (KeyError, TypeError, AttributeError, ValueError):
        return "state.json doesn't say what was written"
    return None


def _checksum_of_tensors(path: Path) -> int:
    """CRC-32 of a safetensors file past its header."""
    checksum = 0
    with path.open("rb") as file:
        file.seek(8 + int.from_bytes(file.read(8), "little"))
        while block := file.read(_BLOCK_BYTES):
            checksum = zlib.crc32(block, checksum)
    return checksum


def read_state(checkpoint: Path) -> dict[str, Any]:
    """The JSON that `save` was given, with `step` and `files`. Raises `InputError`."""
    return read_json(checkpoint / STATE_FILE, schema_version=SCHEMA_VERSION)


def check_fingerprints(checkpoint: Path, saved: Mapping[str, str], current: Mapping[str, str]) -> None:
    """Raise `CheckpointError`, by name, where what a checkpoint doesn't hold has changed since it was written."""
    changed = [name for name in current if saved.get(name) != current[name] and (name in saved or name not in _NEWER)]
    if changed:
        details = "; ".join(f"{name} was {str(saved.get(name))[:12]}, is {current[name][:12]}" for name in changed)
        raise CheckpointError(
            f"{checkpoint} was trained with another {', '.join(changed)} ({details}). Resume with what it was trained with, or "
            "train into another run_dir."
        )


def restore(engine: TrainingEngine, checkpoint: Path, cluster: Cluster, *, num_updates: int) -> None:
    """Put a checkpoint's tensors back into the engine, on any number of ranks. A collective.

    Raises `CheckpointError` on every rank where one can't open the files.
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


def find_result(checkpoint: Path) -> Path:
    """The file of the weights that a checkpoint is worth: their moving average where the run kept one, else themselves."""
    average = checkpoint / AVERAGE_FILE
    return average if average.exists() else checkpoint / TRAINED_FILE


def read_trained(path: Path) -> dict[str, Tensor]:
    """The trained tensors of a file by their names in `SpeechLLM`. Raises `CheckpointError`."""
    from safetensors.torch import load_file

    try:
        tensors: dict[str, Tensor] = load_file(path)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path} can't be read: {error}. Choose another checkpoint of the run with --step.") from error
    return tensors
