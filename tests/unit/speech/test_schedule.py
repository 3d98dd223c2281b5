"""The samples of a step."""

from __future__ import annotations

import itertools
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kappaspeech.speech.schedule import (
    BLOCK_SIZE,
    BatchBudget,
    ClipTokens,
    DatasetLengths,
    Schedule,
    block_starts,
    cut_by_budget,
    deal_evenly,
)


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
def test_ten_million_samples_are_planned_at_once_in_little_memory(monkeypatch):
    """In a process of its own: what it takes beyond the interpreter and numpy is the schedule's."""
    monkeypatch.syspath_prepend(str(Path(__file__).parents[3] / "benchmarks"))
    from stream import plan_ten_million

    measured = plan_ten_million()
    assert measured["seconds_to_start"] < 1
    assert measured["megabytes"] < 200


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 150), min_size=1, max_size=8), st.integers(0, 3), st.integers(0, 2**40))
def test_each_epoch_holds_each_sample_of_any_shards_once(shard_sizes, epoch, seed):
    starts = np.cumsum([0, *shard_sizes[:-1]])
    count = sum(shard_sizes)
    schedule = Schedule([DatasetLengths(np.ones(count), starts, 1.0)], BatchBudget(5, 100.0, 2), seed=seed)
    order = [row[1] for plan in take(schedule, 0, (epoch + 1) * count) for batch in plan for row in batch]
    assert sorted(order[epoch * count : (epoch + 1) * count]) == list(range(count))


TOKENS = ClipTokens(per_clip=7, per_second=16.5)


@given(st.lists(st.floats(0.1, 30), min_size=1, max_size=60), st.integers(1, 2_000))
def test_a_micro_batch_holds_no_more_tokens_than_the_budget(seconds, max_tokens):
    lengths = np.array(seconds)
    runs = cut_by_budget(lengths, BatchBudget(64, 1e6, 1, max_tokens, TOKENS))
    assert [start for start, _ in runs] == [0, *(end for _, end in runs[:-1])]
    assert runs[-1][1] == len(seconds)
    for start, end in runs:
        assert TOKENS.count(lengths[start:end]).sum() <= max_tokens or end - start == 1


def test_tokens_are_of_prompt_audio_text_and_its_end():
    tokens = ClipTokens.of(prompt_tokens=20, seconds_per_position=0.08)
    assert tokens.count(np.array([2.0])).tolist() == [20 + 25 + 8 + 1]


def test_a_budget_without_a_limit_of_tokens_is_what_it_always_was():
    assert BatchBudget(3, 20.0, 4, clip_tokens=TOKENS).to_json() == [3, 20.0, 4]
    assert BatchBudget(3, 20.0, 4, 500, TOKENS).to_json() == [3, 20.0, 4, 500, 7, 16.5]


def some_step(counts: list[int], seed: int, *, least: float = 1.0) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Micro-batches of so many clips each, and the clips' lengths, from `least` to 20 s."""
    rng = np.random.default_rng(seed)
    seconds = [rng.uniform(least, 20, size=count) for count in counts]
    ends = np.cumsum([0, *counts])
    rows = [np.stack([np.zeros(count, int), ends[i] + np.arange(count)], axis=1) for i, count in enumerate(counts)]
    return rows, seconds


@given(st.lists(st.integers(1, 12), min_size=1, max_size=9), st.integers(1, 12), st.integers(0, 99))
@settings(deadline=None)
def test_dealing_a_steps_clips_out_keeps_each_of_them_once_and_within_the_budget(counts, world_size, seed):
    rows, seconds = some_step(counts, seed)
    longest = max(max(part) * len(part) for part in seconds)
    budget = BatchBudget(max(counts), float(longest), len(counts), clip_tokens=TOKENS)
    dealt = deal_evenly(rows, seconds, budget, world_size=world_size)
    assert sorted(row[1] for part in dealt for row in part.tolist()) == list(range(sum(counts)))
    lengths = np.concatenate(seconds)
    assert all(len(part) <= max(counts) and lengths[part[:, 1]].max() * len(part) <= longest for part in dealt)
    # no rank takes more turns
    assert -(-len(dealt) // world_size) == -(-len(counts) // world_size)
    if len(counts) % world_size == 0:
        assert all(np.array_equal(one, other) for one, other in zip(dealt, rows, strict=True))


def test_every_rank_has_about_as_much_of_a_step_that_is_dealt_out():
    # a step's micro-batches are neighbours in length
    rows, seconds = some_step([32] * 16, seed=1, least=12.0)
    dealt = deal_evenly(rows, seconds, BatchBudget(32, 1000.0, 16, clip_tokens=TOKENS), world_size=64)
    assert len(dealt) == 64
    lengths = np.concatenate(seconds)
    tokens = [int(TOKENS.count(lengths[part[:, 1]]).sum()) for part in dealt]
    # a clip more or less
    assert max(tokens) - min(tokens) <= 2 * int(TOKENS.count(lengths).max())


def test_clips_that_can_not_be_dealt_out_within_the_budget_stay_where_they_are():
    """Many short ones beside a long one: as many tokens would be too many clips."""
    seconds = [np.full(8, 1.0), np.full(8, 1.0), np.full(1, 30.0)]
    rows, _ = some_step([8, 8, 1], seed=0)
    dealt = deal_evenly(rows, seconds, BatchBudget(8, 30.0, 3, clip_tokens=TOKENS), world_size=2)
    assert all(np.array_equal(one, other) for one, other in zip(dealt, rows, strict=True))
