"""An engine's state to a checkpoint's files, and back on any number of ranks. `runs/checkpoints.py` defines a checkpoint."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
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
from kappaspeech.zero3.trained_states import ADAM_STATES, AVERAGE, WEIGHTS, TrainedStates, Updates

Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class _Content:
    """One file of a checkpoint: its tensors' shapes, and the kinds of states in it, each with what follows a tensor's name."""

    name: str
    shapes: Shapes
    kinds: Mapping[str, str]

    def collect(self, states: TrainedStates, owners: Mapping[str, int]) -> Iterator[tuple[str, Tensor | None]]:
        """Each tensor of the file under its name there, on the rank that owns it. A collective."""
        for kind, end in self.kinds.items():
            owners_of_kind = {name[: len(name) - len(end)]: owner for name, owner in owners.items() if name.endswith(end)}
            for name, tensor in states.collect(kind, owners_of_kind):
                yield name + end, tensor


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

    Each rank writes whole tensors, which it alone is sent, all about as many bytes. `choose_copy`, a collective, is given this
    rank's. `beside` is the same ranks' cluster for the background alone. `on_progress` is called after each tensor. A collective.
    Raises `TrainingError` on every rank if rank 0 can't begin.
    """
    contents = _contents(engine)
    layouts = {content.name: lay_out(content.shapes, dtype=torch.float32) for content in contents}
    writers = new.begin(cluster, layouts)
    sizes = [_num_bytes(shape) for content in contents for shape in content.shapes.values()]
    turns = iter([writers[index] for index in share_out(sizes, len(writers))])
    owners = {content.name: dict(zip(content.shapes, turns, strict=False)) for content in contents}
    copy = choose_copy(_count_bytes(contents, owners, cluster.rank))
    share, pieces = ShareWriter(new.temporary), deque[Piece]()
    if copy is not None:
        copy.begin()
    for content in contents:
        for name, tensor in content.collect(engine.states, owners[content.name]):
            if tensor is not None:
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
    contents = [
        _Content(TRAINED_FILE, shapes, {WEIGHTS: ""}),
        _Content(OPTIMIZER_FILE, moments, {kind: f"/{kind}" for kind in ADAM_STATES}),
    ]
    if engine.states.keeps_average:
        contents.append(_Content(AVERAGE_FILE, shapes, {AVERAGE: ""}))
    return contents


def _count_bytes(contents: Sequence[_Content], owners: Mapping[str, Mapping[str, int]], rank: int) -> int:
    """The bytes of the tensors that this rank owns."""
    return sum(
        _num_bytes(shape) for content in contents for name, shape in content.shapes.items() if owners[content.name][name] == rank
    )


def _num_bytes(shape: tuple[int, ...]) -> int:
    return torch.float32.itemsize * int(torch.Size(shape).numel())


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
