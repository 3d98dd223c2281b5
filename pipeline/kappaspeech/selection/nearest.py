"""Tensors whose parameters add up to nearly a given number."""

from __future__ import annotations

from collections.abc import Sequence

from kappaspeech.errors import SelectionError
from kappaspeech.selection.candidates import Candidate


def take_nearest(ordered: Sequence[Candidate], target: int) -> list[Candidate]:
    """Take tensors as a budget does, then add, drop or exchange one at a time while that comes nearer to `target`.

    Among equally near moves the one that disturbs the order least wins: it drops late tensors and adds early ones. Raises
    `SelectionError` if none comes near.
    """
    sizes = [candidate.num_parameters for candidate in ordered]
    taken = [False] * len(ordered)
    missing = target
    for place, size in enumerate(sizes):
        if size <= missing:
            taken[place] = True
            missing -= size
    while missing:
        # first tensor of each size that could be added, last of each size that could be dropped: no other can win
        adds = {sizes[place]: place for place in reversed(range(len(sizes))) if not taken[place]}
        drops = {sizes[place]: place for place in range(len(sizes)) if taken[place]}
        moves = [
            (abs(missing - add + drop), to_add, -to_drop)
            for add, to_add in [(0, -1), *adds.items()]
            for drop, to_drop in [(0, -1), *drops.items()]
        ]
        nearest, added, dropped = min(moves)
        if nearest >= abs(missing):
            break
        if added >= 0:
            taken[added] = True
            missing -= sizes[added]
        if -dropped >= 0:
            taken[-dropped] = False
            missing += sizes[-dropped]
    chosen = [candidate for candidate, is_taken in zip(ordered, taken, strict=True) if is_taken]
    if not chosen:
        raise SelectionError(f"Each of the tensors left has more than twice {target} parameters: none comes near it.")
    return chosen
