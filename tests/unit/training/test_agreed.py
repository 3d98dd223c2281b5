"""The threads of a rank, by its configuration, its environment and its host's cores."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch

from kappaspeech import processors
from kappaspeech.training import agreed


@pytest.mark.parametrize(
    ("num_threads", "variables", "expected"),
    [
        (5, {"OMP_NUM_THREADS": "2"}, [5]),
        (None, {"OMP_NUM_THREADS": "2", "LOCAL_WORLD_SIZE": "3"}, []),
        (None, {"LOCAL_WORLD_SIZE": "3"}, [6]),
        # nothing counts as unset
        (None, {"OMP_NUM_THREADS": "", "LOCAL_SIZE": "40"}, [1]),
    ],
)
def test_ranks_share_out_cores_unless_they_are_told_otherwise(monkeypatch, num_threads, variables, expected):
    for name in ("OMP_NUM_THREADS", "LOCAL_WORLD_SIZE", "LOCAL_SIZE", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(processors, "count_cores", lambda: 20)
    asked: list[int] = []
    monkeypatch.setattr(torch, "set_num_threads", asked.append)
    agreed._set_threads(cast(Any, SimpleNamespace(training=SimpleNamespace(num_threads=num_threads))))
    assert asked == expected
