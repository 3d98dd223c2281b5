"""The variables that ranks on this host are started with."""

from __future__ import annotations

import pytest

from kappaspeech import processors
from kappaspeech.launching import supervisor


@pytest.mark.parametrize(
    ("num_gpus", "launcher", "expected"),
    [
        (0, "deepspeed", {"DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "3"}),
        (4, "deepspeed", {}),
        # it gives each rank one core, unless it is told otherwise
        (4, "torchrun", {"OMP_NUM_THREADS": "3"}),
    ],
)
def test_ranks_share_out_the_cores_of_their_host(monkeypatch, num_gpus, launcher, expected):
    for name in ("DS_ACCELERATOR", "OMP_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(supervisor, "count_gpus", lambda: num_gpus)
    monkeypatch.setattr(processors, "count_cores", lambda: 10)
    assert supervisor._rank_variables(3, (launcher, "-q")) == expected
    if expected:
        for given, threads in (("1", "1"), ("", "3")):
            monkeypatch.setenv("OMP_NUM_THREADS", given)
            assert supervisor._rank_variables(3, (launcher, "-q"))["OMP_NUM_THREADS"] == threads
