"""Parts of a rank's memory, held against what it takes."""

from __future__ import annotations

import os

import pytest
import torch

from kappaspeech.planning.memory import count_exchanged, count_state, read_settings
from kappaspeech.planning.sizes import LlmSizes, SpeechSizes
from kappaspeech.ranks.part_exchange import OPEN_BYTES, PartExchange
from tests.gloo_threads import with_groups


@pytest.mark.skipif(not hasattr(os, "memfd_create"), reason="shared memory without a name is Linux's")
@pytest.mark.parametrize("share", [0.25, 3])
def test_exchanged_blocks_take_the_memory_that_the_plan_counts(share):
    """Four gradients and more, of which each of two ranks lays half out for the other."""
    before, open_bytes = shared_memories(), 1 << 20
    laid_out = int(share * open_bytes)

    def work(group):
        exchange = PartExchange(group, open_bytes=open_bytes)
        for _ in range(4):
            exchange.average_parts([torch.ones(2 * laid_out // 4)])
        return exchange

    exchanges = with_groups(2, work)
    taken = {number: num_bytes for number, num_bytes in shared_memories().items() if number not in before}
    assert list(taken.values()) == [count_exchanged(laid_out, open_bytes=open_bytes)] * len(exchanges)


def shared_memories() -> dict[int, int]:
    """The bytes in use of each memory that this process shares without a name."""
    found = {}
    for name in os.listdir("/proc/self/fd"):
        path = f"/proc/self/fd/{name}"
        if os.path.lexists(path) and "memfd:kappaspeech" in os.readlink(path):
            state = os.stat(path)
            found[state.st_ino] = 512 * state.st_blocks
    return found


def test_of_ranks_on_processors_the_plan_counts_exchanged_blocks():
    settings = read_settings({"zero_optimization": {"stage": 3}, "bf16": {"enabled": True}})

    def count(num_trained, **options):
        llm = LlmSizes(8, 8, 8, 8, 1, 4, 10, (num_trained,), num_trained, 0)
        sizes = SpeechSizes(llm, (), 8, 1, 4, 8, 80, 1, 2, 100, pad_to_30s=False)
        return {part.name: part.num_bytes for part in count_state(sizes, settings, **options)}["exchanged blocks"]

    # gradients in float32, of which three ranks in four are given theirs
    assert count(1_000, world_size=4, on_cpu=True) == 2 * 4 * 750
    assert count(10**8, world_size=2, on_cpu=True) == 2 * OPEN_BYTES
    assert count(10**8, world_size=1, on_cpu=True) == count(10**8, world_size=2) == 0
