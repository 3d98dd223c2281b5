"""ZeRO's exchange on processors: means of gradients, of which each rank keeps its part, and parts of weights that all get.

Gloo's own reduce-scatter sums a copy of the whole up on all ranks, twice what is needed, and DeepSpeed copies it once more before
that: of 65 M gradients on two ranks of one host it takes ten times as long. Its all-gather sends what ranks of a host can share.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from kappaspeech.ranks.letterboxes import Letterboxes, SharedLetterboxes, make_letterboxes

# what a rank lays out at once for all others; more isn't faster, and less meets the others more often
OPEN_BYTES = 32 << 20
# (index of a tensor, begin, end): elements of every part of that tensor
Piece = tuple[int, int, int]


class PartExchange:
    """The exchange of one process group's tensors on processors."""

    def __init__(self, group: Any, *, open_bytes: int = OPEN_BYTES) -> None:
        """A collective of the group."""
        self._group, self._rank, self._size = group, int(group.rank()), int(group.size())
        self._boxes: Letterboxes | None = None
        if self._size > 1:
            self._boxes = make_letterboxes(group, max(64, open_bytes // (self._size - 1)))

    @torch.no_grad()
    def average_parts(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """This rank's part of each tensor's mean over ranks, flat. A collective.

        The tensors, alike on all ranks but for their values, are contiguous, on the CPU and of one dtype, in which the quotients
        are added up: this rank's, and then the others' in their order. A part is ⌈n/ranks⌉ elements, the last ones fewer.
        """
        lengths = [-(-tensor.numel() // self._size) for tensor in tensors]
        if self._boxes is None or not tensors:
            return [tensor.view(-1) for tensor in tensors]
        parts = [
            [tensor.view(-1)[rank * length : (rank + 1) * length] for rank in range(self._size)]
            for tensor, length in zip(tensors, lengths, strict=True)
        ]
        means = [of_tensor[self._rank] / self._size for of_tensor in parts]
        dtype = tensors[0].dtype
        for pieces in cut_into_blocks(lengths, most=self._boxes.capacity // dtype.itemsize):
            total = sum(end - begin for _, begin, end in pieces)
            for rank, box in zip(self._others(), self._boxes.open(total * dtype.itemsize), strict=True):
                for place, (index, begin, end) in _places(pieces):
                    source = parts[index][rank][begin:end]
                    torch.div(source, self._size, out=box.view(dtype)[place : place + len(source)])
            for box in self._boxes.swap():
                for place, (index, begin, end) in _places(pieces):
                    mean = means[index][begin:end]
                    mean += box.view(dtype)[place : place + len(mean)]
        return means

    @torch.no_grad()
    def gather_parts(self, parts: Sequence[Tensor], wholes: Sequence[Tensor]) -> None:
        """Fill each of `wholes` with all ranks' `parts` of it, in the order of ranks. A collective.

        All are flat, contiguous and on the CPU. A part is as long on each rank, and its whole, of the same dtype, once for each.
        """
        if isinstance(self._boxes, SharedLetterboxes):
            self._gather_shared(self._boxes, [p.view(torch.uint8) for p in parts], [w.view(torch.uint8) for w in wholes])
        else:
            for started in [self._group._allgather_base(whole, part) for part, whole in zip(parts, wholes, strict=True)]:
                started.wait()

    def _gather_shared(self, boxes: SharedLetterboxes, parts: Sequence[Tensor], wholes: Sequence[Tensor]) -> None:
        """`gather_parts` of bytes: each rank lays its own out once, and reads the others'."""
        places = [whole.view(self._size, -1) for whole in wholes]
        for place, part in zip(places, parts, strict=True):
            place[self._rank].copy_(part)
        for pieces in cut_into_blocks([len(part) for part in parts], most=boxes.capacity_for_all):
            box = boxes.open_for_all(sum(end - begin for _, begin, end in pieces))
            for start, (index, begin, end) in _places(pieces):
                box[start : start + end - begin].copy_(parts[index][begin:end])
            for rank, theirs in zip(self._others(), boxes.swap(), strict=True):
                for start, (index, begin, end) in _places(pieces):
                    places[index][rank, begin:end].copy_(theirs[start : start + end - begin])

    def _others(self) -> list[int]:
        return [rank for rank in range(self._size) if rank != self._rank]


def cut_into_blocks(lengths: Sequence[int], *, most: int) -> Iterator[list[Piece]]:
    """All elements of tensors of these lengths, in order, in blocks of exactly `most` elements but for the last."""
    block: list[Piece] = []
    room = most
    for index, length in enumerate(lengths):
        begin = 0
        while begin < length:
            end = min(length, begin + room)
            block.append((index, begin, end))
            room -= end - begin
            begin = end
            if room == 0:
                yield block
                block, room = [], most
    if block:
        yield block


def _places(pieces: Sequence[Piece]) -> Iterator[tuple[int, Piece]]:
    """Each piece with its place in a box."""
    place = 0
    for index, begin, end in pieces:
        yield place, (index, begin, end)
        place += end - begin
