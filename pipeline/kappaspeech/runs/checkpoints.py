"""Checkpoints of the trained tensors: their float32 weights, Adam's moments, and fingerprints of all that was not trained.

A checkpoint is a folder that appears by one rename, so a kill at any instant leaves the last good one. Tensors are kept whole,
not as partitions: any number of ranks can resume from them. Files' sizes and checksums reveal a checkpoint that its disk has
damaged. `best.py` knows the one of lowest WER, and `new_checkpoint.py` makes them.
"""

from __future__ import annotations

import shutil
import socket
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError, safe_open

from kappaspeech.artefacts import read_json
from kappaspeech.errors import CheckpointError, InputError
from kappaspeech.escaping import make_logger
from kappaspeech.outputs import sweep
from kappaspeech.ranks.agreement import agree, agreement
from kappaspeech.ranks.cluster import Cluster, SingleProcess
from kappaspeech.runs.best import read_best, repair_best
from kappaspeech.runs.checksums import Span, join, read_checksum
from kappaspeech.runs.contents import step_of
from kappaspeech.tensor_files.safetensors_header import find_data

if TYPE_CHECKING:
    from torch import Tensor

SCHEMA_VERSION = 1
STATE_FILE, TRAINED_FILE, OPTIMIZER_FILE = "state.json", "trained.safetensors", "optimizer.safetensors"
AVERAGE_FILE = "average.safetensors"
# fingerprints that checkpoints of versions before this one lack
_NEWER = ("prompt", "replayed text", "consolidation", "initial adaptor")
# and those of what such a version couldn't do
_ABSENT = {"CLASSP": "none"}

_log = make_logger(__name__)


def list_checkpoints(folder: Path) -> list[Path]:
    """Complete checkpoints, oldest first."""
    return list(checkpoints_by_step(folder).values())


def checkpoints_by_step(folder: Path) -> dict[int, Path]:
    """Complete checkpoints by their steps, ascending."""
    if not folder.is_dir():
        return {}
    return dict(sorted((step, path) for path in folder.iterdir() if (step := step_of(path)) is not None))


def prune(folder: Path, *, keep: int) -> None:
    """Remove all checkpoints but the newest `keep` and the one that is marked as best."""
    best = read_best(folder)
    for old in list_checkpoints(folder)[:-keep]:
        if old != best:
            # a kill in the middle mustn't leave half a folder under a whole one's name
            shutil.rmtree(old.rename(folder / f".{old.name}.tmp"))


def prepare_resume(
    folder: Path, *, cluster: Cluster | None = None, find_fault: Callable[[Mapping[str, Any]], str | None] = lambda _: None
) -> Path | None:
    """Clear away the remains of killed saves, and choose the newest whole checkpoint; None if there has never been one.

    `find_fault` names what a checkpoint's state lacks. A checkpoint that its disk has damaged is set aside under the name
    damaged-step-…, with a warning, and the one before is used: the steps between are trained again, on the same samples. Raises
    `CheckpointError` if none is whole, since a run that silently began again would be worse. A collective.
    """
    ranks = cluster or SingleProcess()
    steps = agree(ranks, lambda: _clear_away(folder) if ranks.rank == 0 else [])[0]
    damaged: list[tuple[Path, str]] = []
    for checkpoint in (folder / name for name in reversed(steps)):
        damage = find_damage(checkpoint, cluster=ranks, find_fault=find_fault)
        if damage is None:
            with agreement(ranks):
                if ranks.rank == 0:
                    _set_aside(damaged, checkpoint)
            return checkpoint
        damaged.append((checkpoint, damage))
    if damaged:
        listing = "; ".join(f"{checkpoint.name}: {cause}" for checkpoint, cause in damaged)
        raise CheckpointError(
            f"No checkpoint in {folder} is whole ({listing}). Bring one back from a copy, or remove the folder to train from the "
            "beginning."
        )
    return None


def _clear_away(folder: Path) -> list[str]:
    """Remove what killed saves left; return the names of the checkpoints, oldest first."""
    for leftover in folder.glob(".step-*.tmp"):
        shutil.rmtree(leftover)
    sweep(folder)
    repair_best(folder)
    return [checkpoint.name for checkpoint in list_checkpoints(folder)]


def _set_aside(damaged: list[tuple[Path, str]], used: Path) -> None:
    for broken, cause in damaged:
        aside = broken.with_name(f"damaged-{broken.name}")
        shutil.rmtree(aside, ignore_errors=True)
        broken.rename(aside)
        _log.warning("%s is damaged (%s): set aside as %s; continuing from %s.", broken, cause, aside.name, used.name)


def find_damage(
    checkpoint: Path, *, cluster: Cluster | None = None, find_fault: Callable[[Mapping[str, Any]], str | None] = lambda _: None
) -> str | None:
    """The damage that makes a checkpoint unusable, None if it is whole: a file that is missing, cut, or has other bytes.

    A collective: the ranks read the files' bytes in shares, so that none waits for another that reads them all. Raises
    `CheckpointError` on all if one doesn't see the files that rank 0 sees.
    """
    ranks = cluster or SingleProcess()
    damage, files = agree(ranks, lambda: _look_at(checkpoint, find_fault) if ranks.rank == 0 else (None, {}))[0]
    if damage is not None:
        return str(damage)
    read = agree(ranks, lambda: {name: _read_share(checkpoint / name, file, ranks) for name, file in files.items()})
    for name, file in files.items():
        spans = []
        for share in read:
            if isinstance(found := share[name], str):
                return found
            spans.append(found)
        if join(spans).crc32 != file.crc32:
            return f"{name} isn't what was written"
    return None


def _look_at(checkpoint: Path, find_fault: Callable[[Mapping[str, Any]], str | None]) -> tuple[str | None, dict[str, Span]]:
    """The damage that shows without reading the tensors' bytes; else where these lie in each file, and their checksum."""
    files = {}
    try:
        state = read_state(checkpoint)
        if (fault := find_fault(state)) is not None:
            return fault, {}
        if state["step"] != step_of(checkpoint):
            return f"state.json is of step {state['step']}", {}
        for name, expected in state["files"].items():
            path = checkpoint / name
            if path.stat().st_size != expected["num_bytes"]:
                return f"{name} has {path.stat().st_size} bytes, of {expected['num_bytes']}", {}
            with safe_open(path, framework="pt"):
                pass  # its header can be read
            with path.open("rb") as file:
                files[name] = Span(find_data(file.fileno()), int(expected["num_bytes"]), int(expected["crc32"]))
    except (InputError, OSError, SafetensorError) as error:
        return str(error), {}
    except (KeyError, TypeError, AttributeError, ValueError):
        return "state.json doesn't say what was written", {}
    return None, files


def _read_share(path: Path, file: Span, cluster: Cluster) -> Span | str:
    """The checksum of this rank's share of a file's bytes; the cause if a disk doesn't give them."""
    num_bytes, world_size = file.end - file.begin, cluster.world_size
    begin, end = (file.begin + num_bytes * part // world_size for part in (cluster.rank, cluster.rank + 1))
    try:
        with nullcontext() if cluster.rank == 0 else needing_shared_files(path.parent):
            path.stat()
        return read_checksum(path, begin, end)
    except OSError as error:
        return str(error)


@contextmanager
def needing_shared_files(checkpoint: Path) -> Iterator[None]:
    """Turn errors of opening a checkpoint that rank 0 has found whole into a `CheckpointError`."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"{checkpoint} can't be read on {socket.gethostname()}: {error}. Every host needs run_dir on a file system that all "
            "share."
        ) from error


def read_state(checkpoint: Path) -> dict[str, Any]:
    """The JSON that `save` was given, with `step` and `files`. Raises `InputError`."""
    return read_json(checkpoint / STATE_FILE, schema_version=SCHEMA_VERSION)


def check_fingerprints(checkpoint: Path, saved: Mapping[str, str], current: Mapping[str, str]) -> None:
    """Raise `CheckpointError`, by name, if an input that a checkpoint doesn't hold has changed since it was written."""
    saved = {**_ABSENT, **saved}
    changed = [name for name in current if saved.get(name) != current[name] and (name in saved or name not in _NEWER)]
    if changed:
        details = "; ".join(f"{name} was {str(saved.get(name))[:12]}, is {current[name][:12]}" for name in changed)
        raise CheckpointError(
            f"{checkpoint} was trained with another {', '.join(changed)} ({details}). Resume with what it was trained with, or "
            "train into another run_dir."
        )


def find_weights(checkpoint: Path) -> Path:
    """The file of a checkpoint's weights for use: their moving average if the run kept one, else the weights themselves."""
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
