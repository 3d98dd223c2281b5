"""The samples of a step."""

from __future__ import annotations

import itertools
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kappaspeech.speech.schedule import BLOCK_SIZE, BatchBudget, DatasetLengths, Schedule, block_starts, cut_by_budget


def lengths(count: int, *, weight: float = 1.0, shard_size: int = 100, seed: int = 0) -> DatasetLengths:
    seconds = np.random.default_rng(seed).uniform(1, 20, size=count)
    return DatasetLengths(seconds, np.arange(0, count, shard_size), weight)


def take(schedule: Schedule, first: int, last: int, **options) -> list[list[list[list[int]]]]:
    plans = itertools.islice(schedule.steps(first, **options), last - first)
    return [[micro_batch.tolist() for micro_batch in plan] for _, plan in plans]


BUDGET = BatchBudget(max_samples=8, max_seconds=60.0, micro_batches_per_step=3)


def test_a_step_is_the_same_wherever_the_stream_starts():
    datasets = [lengths(300), lengths(120, seed=1)]
    whole = take(Schedule(datasets, BUDGET, seed=3), 0, 60)
    for first in (1, 17, 59):
        assert take(Schedule(datasets, BUDGET, seed=3), first, 60) == whole[first:]


def test_a_hint_leads_to_the_same_steps():
    datasets = [lengths(300)]
    hints = [hint for hint, _ in itertools.islice(Schedule(datasets, BUDGET, seed=3).steps(0), 80)]
    assert hints[-1] != (0, 0)
    assert take(Schedule(datasets, BUDGET, seed=3), 79, 90, hint=hints[79]) == take(Schedule(datasets, BUDGET, seed=3), 79, 90)
    # a hint from beyond the step is of no use, and does no harm
    assert take(Schedule(datasets, BUDGET, seed=3), 2, 4, hint=hints[79]) == take(Schedule(datasets, BUDGET, seed=3), 2, 4)


def test_another_seed_gives_another_order():
    datasets = [lengths(300)]
    assert take(Schedule(datasets, BUDGET, seed=3), 0, 5) != take(Schedule(datasets, BUDGET, seed=4), 0, 5)


def test_an_epoch_holds_every_sample_once():
    dataset = lengths(257)
    rows = [tuple(row) for plan in take(Schedule([dataset], BUDGET, seed=0), 0, 40) for batch in plan for row in batch]
    for epoch in range(2):
        assert sorted(rows[epoch * 257 : (epoch + 1) * 257]) == [(0, i) for i in range(257)]


def test_data_sets_are_mixed_by_their_weights():
    datasets = [lengths(100, weight=3.0), lengths(400, weight=1.0)]
    rows = [row[0] for plan in take(Schedule(datasets, BUDGET, seed=0), 0, 400) for batch in plan for row in batch]
    counts = Counter(rows)
    assert counts[0] / len(rows) == pytest.approx(0.75, abs=0.01)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(0.1, 40.0), min_size=1, max_size=60), st.integers(1, 9), st.floats(5.0, 90.0))
def test_micro_batches_keep_their_budget_and_lose_nothing(seconds, max_samples, max_seconds):
    runs = cut_by_budget(np.array(seconds), BatchBudget(max_samples, max_seconds, 1))
    assert [index for start, end in runs for index in range(start, end)] == list(range(len(seconds)))
    for start, end in runs:
        assert 0 < end - start <= max_samples
        assert end - start == 1 or max(seconds[start:end]) * (end - start) <= max_seconds


def test_blocks_never_cross_a_shard():
    assert block_starts(np.array([0, 150, 160]), 224).tolist() == [0, BLOCK_SIZE, 2 * BLOCK_SIZE, 150, 160]


def test_like_lengths_share_a_micro_batch():
    dataset = lengths(1000)
    for plan in take(Schedule([dataset], BatchBudget(8, 1000.0, 1), seed=0), 0, 50):
        chosen = [dataset.seconds[row[1]] for row in plan[0]]
        # a batch may straddle two buckets of a factor of 1.1
        assert max(chosen) <= 1.25 * min(chosen)


@pytest.mark.slow
def test_ten_million_samples_are_planned_at_once_in_little_memory():
    """In a process of its own: what it takes beyond the interpreter and numpy is the schedule's."""
    program = """
import time
import numpy as np
from kappaspeech.speech.schedule import BatchBudget, DatasetLengths, Schedule
def peak_kilobytes():
    # of this program alone: ru_maxrss counts what was there before it started
    return int(open("/proc/self/status").read().partition("VmHWM:")[2].split()[0])
count = 10_000_000
before = peak_kilobytes()
seconds = 1 + 19 * np.random.default_rng(0).random(count, dtype=np.float32)
began = time.perf_counter()
schedule = Schedule([DatasetLengths(seconds, np.arange(0, count, 1000), 1.0)], BatchBudget(16, 120.0, 8), seed=1)
late = schedule.steps(900_000, hint=(1_000, 900_000 - 17))
hint, plan = next(late)
print(time.perf_counter() - began, peak_kilobytes() - before, len(plan))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    seconds, kilobytes, num_micro_batches = map(float, done.stdout.split())
    assert seconds < 1
    assert kilobytes < 200_000
    assert num_micro_batches == 8


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 150), min_size=1, max_size=8), st.integers(0, 3), st.integers(0, 2**40))
def test_each_epoch_holds_each_sample_of_any_shards_once(shard_sizes, epoch, seed):
    starts = np.cumsum([0, *shard_sizes[:-1]])
    count = sum(shard_sizes)
    schedule = Schedule([DatasetLengths(np.ones(count), starts, 1.0)], BatchBudget(5, 100.0, 2), seed=seed)
    order = [row[1] for plan in take(schedule, 0, (epoch + 1) * count) for batch in plan for row in batch]
    assert sorted(order[epoch * count : (epoch + 1) * count]) == list(range(count))
