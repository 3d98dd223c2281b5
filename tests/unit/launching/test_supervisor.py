"""The surroundings that ranks on this host are started with."""

from __future__ import annotations

import pytest

from kappaspeech.launching import supervisor


@pytest.mark.parametrize(
    ("num_gpus", "launcher", "expected"),
    [
        (0, "deepspeed", {"DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "4"}),
        (4, "deepspeed", {}),
        # it gives each rank one core, unless it is told otherwise
        (4, "torchrun", {"OMP_NUM_THREADS": "4"}),
    ],
)
def test_ranks_share_out_the_cores_of_their_host(monkeypatch, num_gpus, launcher, expected):
    for name in ("DS_ACCELERATOR", "OMP_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(supervisor, "count_gpus", lambda: num_gpus)
    monkeypatch.setattr(supervisor, "count_cores", lambda: 10)
    assert supervisor._rank_variables(3, (launcher, "-q")) == expected
    if expected:
        monkeypatch.setenv("OMP_NUM_THREADS", "1")
        assert supervisor._rank_variables(3, (launcher, "-q"))["OMP_NUM_THREADS"] == "1"
