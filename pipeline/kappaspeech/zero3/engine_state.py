"""An engine's state to a checkpoint's files, and back on any number of ranks. `runs/checkpoints.py` defines a checkpoint."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from kappaspeech.model.tensor_digests import share_out
from kappaspeech.ranks.agreement import agreement
from kappaspeech.ranks.cluster import Cluster
from kappaspeech.runs.checkpoints import AVERAGE_FILE, OPTIMIZER_FILE, TRAINED_FILE, needing_shared_files
from kappaspeech.runs.new_checkpoint import NewCheckpoint, Writing
from kappaspeech.runs.share_writer import Piece, ShareWriter, cut, place
from kappaspeech.tensor_files.safetensors_writer import lay_out
from kappaspeech.zero3.engine import TrainingEngine
from kappaspeech.zero3.host_copy import HostCopy
from kappaspeech.zero3.trained_states import ADAM_STATES, Updates

Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class _Content:
    """One file of a checkpoint: its tensors' shapes, and the function that gathers them in that order, a collective."""

    name: str
    shapes: Shapes
    gather: Callable[[], Iterator[tuple[str, Tensor]]]

    @property
    def sizes(self) -> list[int]:
        return [torch.float32.itemsize * int(torch.Size(shape).numel()) for shape in self.shapes.values()]


def save(
    engine: TrainingEngine,
    cluster: Cluster,
    beside: Cluster,
    new: NewCheckpoint,
    *,
    choose_copy: Callable[[int], HostCopy | None],
    on_progress: Callable[[], None] = lambda: None,
) -> Writing:
    """Copy the engine's state as it is now, and begin to write it in the background; or write it now, without a copy.

    Each rank writes whole tensors, all about as many bytes. `choose_copy`, a collective, is given this rank's. `beside` is the
    same ranks' cluster for the background alone. `on_progress` is called after each tensor. A collective. Raises `TrainingError`
    on every rank if rank 0 can't begin.
    """
    contents = _contents(engine)
    layouts = {content.name: lay_out(content.shapes, dtype=torch.float32) for content in contents}
    writers = new.begin(cluster, layouts)
    sizes = [size for content in contents for size in content.sizes]
    owners = [writers[index] for index in share_out(sizes, len(writers))]
    copy = choose_copy(sum(size for size, owner in zip(sizes, owners, strict=True) if owner == cluster.rank))
    share, pieces, turns = ShareWriter(new.temporary), deque[Piece](), iter(owners)
    if copy is not None:
        copy.begin()
    for content in contents:
        for name, tensor in content.gather():
            if next(turns) == cluster.rank:
                blocks = cut(tensor.cpu()) if copy is None else copy.take(tensor)
                pieces.extend(place(content.name, layouts[content.name].begins[name], blocks))
                if copy is None:
                    share.write(pieces)
            on_progress()
    if copy is not None:
        copy.settle()
    return Writing(lambda: new.end(beside, share, pieces, layouts), share)


def _contents(engine: TrainingEngine) -> list[_Content]:
    shapes = engine.states.shapes()
    moments = {f"{name}/{kind}": shape for name, shape in shapes.items() for kind in ADAM_STATES}

    def gather_moments() -> Iterator[tuple[str, Tensor]]:
        return ((f"{name}/{kind}", tensor) for name, kind, tensor in engine.states.gather_moments(to_host=False))

    contents = [
        _Content(TRAINED_FILE, shapes, lambda: engine.states.gather_weights(to_host=False)),
        _Content(OPTIMIZER_FILE, moments, gather_moments),
    ]
    if engine.states.keeps_average:
        contents.append(_Content(AVERAGE_FILE, shapes, lambda: engine.states.gather_average(to_host=False)))
    return contents


def restore(engine: TrainingEngine, checkpoint: Path, cluster: Cluster, *, num_updates: Updates) -> None:
    """Put a checkpoint's tensors back into the engine, on any number of ranks. A collective.

    Raises `CheckpointError` on every rank if one can't open the files.
    """
    with ExitStack() as files:
        with agreement(cluster), needing_shared_files(checkpoint):
            names = (TRAINED_FILE, OPTIMIZER_FILE, *([AVERAGE_FILE] if engine.states.keeps_average else []))
            weights, moments, *average = (files.enter_context(safe_open(checkpoint / name, framework="pt")) for name in names)
        engine.states.restore(
            weights.get_tensor,
            lambda name, kind: moments.get_tensor(f"{name}/{kind}"),
            average[0].get_tensor if average else None,
            num_updates=num_updates,
        )
