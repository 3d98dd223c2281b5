"""Each rank gets its part of the mean, and all parts of a whole, whatever the blocks in which they travel."""

from __future__ import annotations

import math

import pytest
import torch

from kappaspeech.ranks import part_exchange
from kappaspeech.ranks.letterboxes import SentLetterboxes
from kappaspeech.ranks.part_exchange import PartExchange, cut_into_blocks
from tests.gloo_threads import with_groups

SHAPES = [(7, 5), (1,), (64,), (3,), (0,), (130,)]


def gradients(rank: int, dtype: torch.dtype) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(rank)
    return [torch.randn(shape, generator=generator).to(dtype) for shape in SHAPES]


def average(world_size, dtype, open_bytes, monkeypatch, *, sent=False):
    if sent:
        monkeypatch.setattr(part_exchange, "make_letterboxes", SentLetterboxes)

    def work(group):
        exchange = PartExchange(group, open_bytes=open_bytes)
        # a second time, since boxes take turns
        exchange.average_parts(gradients(group.rank() + 50, dtype))
        return exchange.average_parts(gradients(group.rank(), dtype))

    return with_groups(world_size, work)


@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
@pytest.mark.parametrize("open_bytes", [64, 1 << 20])
def test_the_parts_of_all_ranks_are_the_mean(world_size, open_bytes, monkeypatch):
    found = average(world_size, torch.float32, open_bytes, monkeypatch)
    for index, shape in enumerate(SHAPES):
        parts = [of_rank[index] for of_rank in found]
        expected = torch.stack([gradients(rank, torch.float64)[index] for rank in range(world_size)]).mean(0)
        places = range(math.prod(shape))
        length = math.ceil(len(places) / world_size)
        assert [len(part) for part in parts] == [len(places[r * length : (r + 1) * length]) for r in range(world_size)]
        torch.testing.assert_close(torch.cat(parts).view(shape).double(), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("sent", [False, True])
def test_two_ranks_get_the_bits_of_an_all_reduce_of_quotients(dtype, sent, monkeypatch):
    found = average(2, dtype, 96, monkeypatch, sent=sent)
    for index, (first, second) in enumerate(zip(gradients(0, dtype), gradients(1, dtype), strict=True)):
        expected = (first / 2 + second / 2).flatten()
        assert torch.equal(torch.cat([of_rank[index] for of_rank in found]), expected)


def test_sent_parts_of_four_bytes_a_number_need_no_capacity_that_four_divides(monkeypatch):
    found = average(4, torch.float32, 200, monkeypatch, sent=True)
    for index, of_ranks in enumerate(zip(*(gradients(rank, torch.float32) for rank in range(4)), strict=True)):
        expected = torch.stack(of_ranks).mean(dim=0).flatten()
        assert torch.allclose(torch.cat([of_rank[index] for of_rank in found]), expected, rtol=1e-5, atol=1e-6)


def test_the_tensors_that_are_averaged_stay_as_they_are():
    def work(group):
        mine = gradients(group.rank(), torch.float32)
        PartExchange(group).average_parts(mine)
        return all(torch.equal(*pair) for pair in zip(mine, gradients(group.rank(), torch.float32), strict=True))

    assert with_groups(2, work) == [True, True]


@pytest.mark.parametrize(
    ("world_size", "open_bytes", "sent"), [(2, 64, False), (3, 1 << 20, False), (4, 300, False), (3, 64, True)]
)
def test_every_rank_gets_the_bits_of_all_parts(world_size, open_bytes, sent, monkeypatch):
    """By turns with averaging, in the same memory; dtypes may differ."""
    if sent:
        monkeypatch.setattr(part_exchange, "make_letterboxes", SentLetterboxes)

    def parts(rank):
        return [part.flatten() for dtype in (torch.float32, torch.bfloat16) for part in gradients(rank, dtype)]

    def work(group):
        exchange = PartExchange(group, open_bytes=open_bytes)
        before = exchange.average_parts(gradients(group.rank(), torch.float32))
        mine = parts(group.rank())
        wholes = [part.new_full((len(part) * world_size,), 7.0) for part in mine]
        exchange.gather_parts(mine, wholes)
        after = exchange.average_parts(gradients(group.rank(), torch.float32))
        return wholes, all(torch.equal(*pair) for pair in zip(before, after, strict=True))

    expected = [torch.cat(of_ranks) for of_ranks in zip(*(parts(rank) for rank in range(world_size)), strict=True)]
    for wholes, is_average_same in with_groups(world_size, work):
        assert is_average_same
        assert all(torch.equal(*pair) for pair in zip(wholes, expected, strict=True))


def test_of_a_gather_through_shared_memory_nothing_is_sent():
    """A barrier a block, and no message: three blocks of at most 64 bytes."""
    counts = []

    class Counted:
        """A group's collectives, noted by name."""

        def __init__(self, group):
            self._group = group

        def __getattr__(self, name):
            if name not in ("rank", "size"):
                counts.append(name)
            return getattr(self._group, name)

    def work(group):
        exchange = PartExchange(Counted(group), open_bytes=64)
        group.barrier().wait()
        counts.clear()
        group.barrier().wait()
        parts = [torch.full((length,), float(group.rank())) for length in (20, 0, 5, 10)]
        exchange.gather_parts(parts, [part.repeat(2) for part in parts])
        group.barrier().wait()
        return sorted(counts)

    assert with_groups(2, work) == [["barrier"] * 6] * 2


def test_blocks_hold_all_elements_once_and_in_order_and_are_full_but_for_the_last():
    lengths = [5, 0, 12, 1, 3]
    blocks = list(cut_into_blocks(lengths, most=4))
    assert [sum(end - begin for _, begin, end in block) for block in blocks] == [4, 4, 4, 4, 4, 1]
    elements = [(index, i) for block in blocks for index, begin, end in block for i in range(begin, end)]
    assert elements == [(index, i) for index, length in enumerate(lengths) for i in range(length)]
