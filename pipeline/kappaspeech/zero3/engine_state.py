"""An engine's state to a checkpoint's files, and back on any number of ranks. `runs/checkpoints.py` defines a checkpoint."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open

from kappaspeech.model.tensor_digests import share_out
from kappaspeech.ranks.agreement import agreement
from kappaspeech.ranks.cluster import Cluster
from kappaspeech.runs.checkpoints import AVERAGE_FILE, OPTIMIZER_FILE, TRAINED_FILE, needing_shared_files
from kappaspeech.runs.new_checkpoint import NewCheckpoint, Writing
from kappaspeech.runs.share_writer import Piece, ShareWriter, cut, place
from kappaspeech.tensor_files.safetensors_writer import Layout, lay_out
from kappaspeech.zero3.engine import ADAM_STATES, Kind, TrainingEngine
from kappaspeech.zero3.host_copy import HostCopy


@dataclass(frozen=True)
class _Content:
    """One file of a checkpoint: the kinds of tensors in it, and what they are called there, with their shapes, in its order."""

    file: str
    kinds: tuple[Kind, ...]
    shapes: Mapping[tuple[str, Kind], tuple[str, tuple[int, ...]]]

    @property
    def layout(self) -> Layout:
        return lay_out(dict(self.shapes.values()), dtype=torch.float32)

    @property
    def sizes(self) -> list[int]:
        return [torch.float32.itemsize * int(torch.Size(shape).numel()) for _, shape in self.shapes.values()]


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
    layouts = {content.file: content.layout for content in contents}
    writers = new.begin(cluster, layouts)
    sizes = [size for content in contents for size in content.sizes]
    owners = [writers[index] for index in share_out(sizes, len(writers))]
    copy = choose_copy(sum(size for size, owner in zip(sizes, owners, strict=True) if owner == cluster.rank))
    share, pieces, turns = ShareWriter(new.temporary), deque[Piece](), iter(owners)
    if copy is not None:
        copy.begin()
    for content in contents:
        for name, kind, tensor in engine.collect(content.kinds, turns):
            if tensor is not None:
                blocks = cut(tensor.cpu()) if copy is None else copy.take(tensor)
                stored, _ = content.shapes[name, kind]
                pieces.extend(place(content.file, layouts[content.file].begins[stored], blocks))
                if copy is None:
                    share.write(pieces)
            on_progress()
    if copy is not None:
        copy.settle()
    return Writing(lambda: new.end(beside, share, pieces, layouts), share)


def _contents(engine: TrainingEngine) -> list[_Content]:
    files: dict[str, tuple[Kind, ...]] = {TRAINED_FILE: ("weight",), OPTIMIZER_FILE: ADAM_STATES}
    if engine.keeps_average:
        files[AVERAGE_FILE] = ("average",)
    trained = engine.trained_shapes().items()
    return [
        _Content(
            file,
            kinds,
            {
                (name, kind): (f"{name}/{kind}" if file == OPTIMIZER_FILE else name, shape)
                for name, shape in trained
                for kind in kinds
            },
        )
        for file, kinds in files.items()
    ]


def restore(engine: TrainingEngine, checkpoint: Path, cluster: Cluster, *, num_updates: int) -> None:
    """Put a checkpoint's tensors back into the engine, on any number of ranks. A collective.

    Raises `CheckpointError` on every rank if one can't open the files.
    """
    with ExitStack() as files:
        with agreement(cluster), needing_shared_files(checkpoint):
            names = (TRAINED_FILE, OPTIMIZER_FILE, *([AVERAGE_FILE] if engine.keeps_average else []))
            weights, moments, *average = (files.enter_context(safe_open(checkpoint / name, framework="pt")) for name in names)
        engine.restore(
            weights.get_tensor,
            lambda name, kind: moments.get_tensor(f"{name}/{kind}"),
            average[0].get_tensor if average else None,
            num_updates=num_updates,
        )
