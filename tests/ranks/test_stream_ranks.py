"""A step's samples are the same on any number of processes, and on another number after a cut at any step."""

from __future__ import annotations

import json
import os
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.nursery import Nursery

pytestmark = pytest.mark.slow
NUM_STEPS = 14


class Ranks:
    """Processes that act as ranks of any world size up to their number."""

    def __init__(self, nursery: Nursery, home: Path, shards: str, number: int, folder: Path) -> None:
        self._nursery = nursery
        self._pids, self._requests, self._answers = [], [], []
        for rank in range(number):
            ways = folder / f"requests{rank}", folder / f"answers{rank}"
            for way in ways:
                os.mkfifo(way)
            errors = folder / f"errors{rank}"
            options = {"module": "tests.ranks.stream_rank", "input": ways[0], "output": ways[1], "errors": errors}
            self._pids += nursery.start(home, shards, **options)
            self._requests.append(ways[0].open("w"))
            self._answers.append(ways[1].open())

    def run(self, world_size: int, first: int, count: int, hint: tuple[int, int] = (0, 0)) -> list[list[dict]]:
        """Each step's answers, by rank."""
        for rank, requests in enumerate(self._requests[:world_size]):
            request = {"rank": rank, "world_size": world_size, "first": first, "count": count, "hint": hint}
            print(json.dumps(request), file=requests, flush=True)
        answers = [json.loads(told.readline()) for told in self._answers[:world_size]]
        return [list(step) for step in zip(*answers, strict=True)]

    def close(self) -> None:
        for file in (*self._requests, *self._answers):
            file.close()
        assert self._nursery.wait(self._pids) == [0] * len(self._pids)


@pytest.fixture(scope="module")
def shards(home, tmp_path_factory) -> str:
    """Shards of one sample beside larger ones."""
    from kappaspeech.speech.layouts import find_recordings
    from kappaspeech.speech.packing import pack

    folder = tmp_path_factory.mktemp("uneven")
    recordings = find_recordings(home / "speech/train")
    for name, part, size in (("single", recordings[::5], 1), ("rest", [r for i, r in enumerate(recordings) if i % 5], 100)):
        pack(part, folder / name, shard_size=size, num_processes=1)
    return f"{folder}/{{single,rest}}/*.tar"


@pytest.fixture(scope="module")
def ranks(nursery, home, shards, tmp_path_factory):
    running = Ranks(nursery, home, shards, 4, tmp_path_factory.mktemp("ranks"))
    yield running
    running.close()


@pytest.fixture(scope="module")
def uninterrupted(ranks) -> list[list[str]]:
    return [merge(step) for step in ranks.run(1, 0, NUM_STEPS)]


def merge(step: list[dict]) -> list[str]:
    """The keys of a step in the order of its micro-batches, which ranks take in turns; every rank has as many of them."""
    assert len({(answer["step"], len(answer["batches"])) for answer in step}) == 1
    turns = zip(*(answer["batches"] for answer in step), strict=True)
    return [key for turn in turns for batch in turn for key in batch]


@pytest.mark.parametrize("world_size", [2, 3, 4])
def test_steps_are_the_same_on_any_number_of_processes(ranks, uninterrupted, world_size):
    assert [merge(step) for step in ranks.run(world_size, 0, NUM_STEPS)] == uninterrupted


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(1, NUM_STEPS - 1), st.integers(1, 4), st.integers(1, 4), st.booleans())
def test_a_run_cut_at_any_step_continues_on_another_number_of_processes(ranks, uninterrupted, cut, before, after, with_hint):
    first = ranks.run(before, 0, cut)
    hint = tuple(first[-1][0]["hint"]) if with_hint else (0, 0)
    rest = ranks.run(after, cut, NUM_STEPS - cut, hint)
    assert [merge(step) for step in [*first, *rest]] == uninterrupted


def test_each_language_keeps_its_share_and_its_own_epochs(ranks):
    keys = [key for step in ranks.run(2, 0, 60) for key in merge(step)]
    by_language = {language: [key for key in keys if key.startswith(f"{language}/")] for language in ("en", "de")}
    assert len(by_language["de"]) / len(keys) == pytest.approx(2 / 3, abs=0.03)
    for own in by_language.values():
        counts = Counter(own)
        assert len(counts) == 12
        # a window is shuffled as a whole, so that an epoch's end may stand a window later
        assert max(counts.values()) - min(counts.values()) <= 2
