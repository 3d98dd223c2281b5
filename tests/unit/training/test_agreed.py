"""The threads of a rank, by its configuration, its environment and its host's cores."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch

from kappaspeech import processors
from kappaspeech.training import agreed

CORES = frozenset(range(20))


@pytest.fixture
def set_threads(monkeypatch):
    """The numbers of threads that rank 0 of these hosts and cores sets, of 20 cores that it may use."""

    def ask(others: list[tuple[str, frozenset[int]]], *, num_threads: int | None = None, **variables: str) -> list[int]:
        for name in ("OMP_NUM_THREADS", "LOCAL_WORLD_SIZE", "LOCAL_SIZE"):
            monkeypatch.delenv(name, raising=False)
        for name, value in {"WORLD_SIZE": str(1 + len(others)), **variables}.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr(agreed.socket, "gethostname", lambda: "a")
        monkeypatch.setattr(processors, "count_cores", lambda: 20)
        monkeypatch.setattr(agreed, "find_cores", lambda: CORES)
        asked: list[int] = []
        monkeypatch.setattr(torch, "set_num_threads", asked.append)
        cluster = SimpleNamespace(rank=0, gather=lambda own: [own, *others])
        agreed._set_threads(cast(Any, SimpleNamespace(training=SimpleNamespace(num_threads=num_threads))), cast(Any, cluster))
        return asked

    return ask


def test_ranks_share_out_cores_unless_they_are_told_otherwise(set_threads):
    beside = [("a", CORES)] * 2
    assert set_threads(beside) == [6]
    assert set_threads(beside, num_threads=5, OMP_NUM_THREADS="2") == [5]
    assert set_threads(beside, OMP_NUM_THREADS="2") == []
    # nothing counts as unset
    assert set_threads([("a", CORES)] * 39, OMP_NUM_THREADS="") == [1]


def test_ranks_of_other_hosts_and_ranks_bound_to_other_cores_take_no_threads(set_threads):
    """srun and mpirun don't say how many ranks a host has: 16 ranks on two hosts had a sixteenth of a host's cores each."""
    assert set_threads([("a", CORES)] * 3 + [("b", CORES)] * 4) == [5]
    bound = [("a", frozenset(range(20 * rank, 20 * rank + 20))) for rank in range(1, 8)]
    assert set_threads(bound + [("b", CORES)] * 8) == [20]
