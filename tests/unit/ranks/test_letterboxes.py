"""Bytes that a rank lays out for the others reach each of them, through shared memory or over the network."""

from __future__ import annotations

import itertools
import os

import pytest
import torch

from kappaspeech.ranks import letterboxes
from kappaspeech.ranks.letterboxes import SentLetterboxes, SharedLetterboxes, make_letterboxes
from tests.gloo_threads import with_groups

SIZES = [100, 7, 100, 1, 64, 99]


def swap_often(boxes, rank, world_size):
    """Of each swap, the number that each other rank's box is full of, or None if it isn't."""
    found = []
    others = [other for other in range(world_size) if other != rank]
    for turn, size in enumerate(SIZES):
        for other, box in zip(others, boxes.open(size), strict=True):
            box.fill_(16 * turn + 4 * rank + other)
        swapped = [(len(box), box.unique().tolist()) for box in boxes.swap()]
        found.append([values[0] if length == size and len(values) == 1 else None for length, values in swapped])
    return found


@pytest.mark.parametrize(("kind", "world_size"), list(itertools.product(("shared", "sent"), (2, 4))))
def test_each_rank_finds_what_the_others_laid_out_for_it(kind, world_size):
    def work(group):
        boxes = SharedLetterboxes.make(group, 100) if kind == "shared" else SentLetterboxes(group, 100)
        return swap_often(boxes, group.rank(), world_size)

    expected = [
        [[16 * turn + 4 * other + rank for other in range(world_size) if other != rank] for turn in range(len(SIZES))]
        for rank in range(world_size)
    ]
    assert with_groups(world_size, work) == expected


@pytest.mark.parametrize("world_size", [2, 4])
def test_each_rank_finds_what_the_others_laid_out_for_all(world_size):
    """By turns with boxes for each, in the same memory."""

    def work(group):
        boxes, rank, found = SharedLetterboxes.make(group, 100), group.rank(), []
        assert boxes.capacity_for_all >= 100 * (world_size - 1)
        for turn, size in enumerate([boxes.capacity_for_all, 1, 100, boxes.capacity_for_all]):
            boxes.open_for_all(size).fill_(16 * turn + rank)
            found.append([(len(box), box.unique().tolist()) for box in boxes.swap()] == of_all(turn, size, rank))
            found.append(swap_often(boxes, rank, world_size)[0] == [4 * other + rank for other in others_of(rank)])
        return found

    def others_of(rank):
        return [other for other in range(world_size) if other != rank]

    def of_all(turn, size, rank):
        return [(size, [16 * turn + other]) for other in others_of(rank)]

    assert with_groups(world_size, work) == [[True] * 8] * world_size


@pytest.mark.skipif(not hasattr(os, "memfd_create"), reason="shared memory without a name is Linux's")
def test_ranks_of_one_host_share_memory_and_leave_no_open_file():
    before = len(os.listdir("/proc/self/fd"))
    made = with_groups(3, lambda group: make_letterboxes(group, 1000))
    assert [type(boxes) for boxes in made] == [SharedLetterboxes] * 3
    # mapped memory holds a file of its own for each mapping; the groups have ended with their sockets
    links = [os.readlink(f"/proc/self/fd/{name}") for name in os.listdir("/proc/self/fd") if _is_open(name)]
    assert sum("memfd:kappaspeech" in link for link in links) == 9
    del made
    assert len(os.listdir("/proc/self/fd")) <= before


def _is_open(name):
    return os.path.lexists(f"/proc/self/fd/{name}")


@pytest.mark.parametrize("fault", ["hosts", "refused", "a stranger's"])
def test_all_ranks_send_if_one_cant_share(monkeypatch, fault):
    numbers = itertools.count()
    if fault == "hosts":
        monkeypatch.setattr(letterboxes, "_find_kernel", lambda: ["boot", str(next(numbers))])
    elif fault == "a stranger's":
        # as on a host that was copied as it ran: the numbers are right, and the memory is another's
        monkeypatch.setattr(letterboxes, "_map", lambda _path, size: torch.zeros(size, dtype=torch.uint8))
    else:
        mapped = letterboxes._map

        def refuse_once(path, size):
            if next(numbers) == 3:
                raise PermissionError(13, "Permission denied", str(path))
            return mapped(path, size)

        monkeypatch.setattr(letterboxes, "_map", refuse_once)

    def work(group):
        boxes = make_letterboxes(group, 100)
        return type(boxes), swap_often(boxes, group.rank(), 2)

    found = with_groups(2, work)
    assert [kind for kind, _ in found] == [SentLetterboxes] * 2
    assert [values[1] for _, values in found] == [[16 + 4], [16 + 1]]
