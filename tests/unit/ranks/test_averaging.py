"""Each rank gets its part of the mean, whatever the blocks in which it travels."""

from __future__ import annotations

import math

import pytest
import torch

from kappaspeech.ranks import averaging
from kappaspeech.ranks.averaging import Averaging, cut_into_blocks
from kappaspeech.ranks.letterboxes import SentLetterboxes
from tests.gloo_threads import with_groups

SHAPES = [(7, 5), (1,), (64,), (3,), (0,), (130,)]


def gradients(rank: int, dtype: torch.dtype) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(rank)
    return [torch.randn(shape, generator=generator).to(dtype) for shape in SHAPES]


def average(world_size, dtype, open_bytes, monkeypatch, *, sent=False):
    if sent:
        monkeypatch.setattr(averaging, "make_letterboxes", SentLetterboxes)

    def work(group):
        averages = Averaging(group, open_bytes=open_bytes)
        # a second time, since boxes take turns
        averages.average_parts(gradients(group.rank() + 50, dtype))
        return averages.average_parts(gradients(group.rank(), dtype))

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
        Averaging(group).average_parts(mine)
        return all(torch.equal(*pair) for pair in zip(mine, gradients(group.rank(), torch.float32), strict=True))

    assert with_groups(2, work) == [True, True]


def test_blocks_hold_all_elements_once_and_in_order_and_are_full_but_for_the_last():
    lengths = [5, 0, 12, 1, 3]
    blocks = list(cut_into_blocks(lengths, most=4))
    assert [sum(end - begin for _, begin, end in block) for block in blocks] == [4, 4, 4, 4, 4, 1]
    elements = [(index, i) for block in blocks for index, begin, end in block for i in range(begin, end)]
    assert elements == [(index, i) for index, length in enumerate(lengths) for i in range(length)]
