"""The variables that ranks on this host are started with."""

from __future__ import annotations

import pytest

from kappaspeech import processors
from kappaspeech.launching import supervisor
from kappaspeech.launching.attempt import Attempt


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


@pytest.mark.parametrize(
    ("answers", "num_starts"),
    [
        # from the beginning; from the first start on, and back for the second; back too late
        (["it hangs"], 0),
        ([None, "it hangs", None], 2),
        ([None, "it hangs", "it hangs"], 1),
    ],
)
def test_no_checkpoint_is_read_before_the_file_system_has_answered(monkeypatch, tmp_path, answers, num_starts):
    """A read there would keep the supervisor for good, and nothing would tell why."""
    left, last, starts = list(answers), [], []

    def ask(_folder, **_patience):
        last[:] = [left.pop(0)]
        return last[0]

    def read(_folder):
        assert last == [None], "it is read before it has answered"
        # nobody has asked since
        last.clear()
        return []

    def start(_request, _signals):
        starts.append(1)
        return Attempt("failed", 1, ("a fault",))

    monkeypatch.setattr(supervisor, "find_problem", ask)
    monkeypatch.setattr(supervisor, "list_checkpoints", read)
    monkeypatch.setattr(supervisor, "_start", start)
    request = supervisor.Request(("c.yaml",), tmp_path, num_ranks=1)
    ended = supervisor.supervise(request, max_restarts=min(1, len(answers) - 1), first_delay_seconds=0.0)
    assert len(starts) == num_starts
    assert ended.status == "failed"
    assert left == []
    assert ended.causes[-1].endswith("a fault" if answers[-1] is None else "it hangs")
