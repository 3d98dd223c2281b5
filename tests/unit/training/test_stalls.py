"""Stalled runs: when a run counts as one, and who is said to wait for whom."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from typing import Any

from kappaspeech.ranks.launch_parent import LaunchParent
from kappaspeech.ranks.liveness import own_place, process_state
from kappaspeech.training.phases import PhaseClock
from kappaspeech.training.stalls import StallJudge, find_behind, tell_standings
from tests.patience import patience


def post(step: int | None, turn: int, *, tick: int = 0, phase: str = "encoder") -> dict[str, Any]:
    at = [step, phase, turn, tick]
    place = ["host", "pid:[1]", 10, 20]
    return {"doing": f"step {step}, {phase}", "at": at, "for": 1.0, "keys": [f"key-{turn}"], "place": place, "wish": None}


def test_a_run_has_stalled_once_no_rank_got_on_for_the_limit():
    judge = StallJudge(10.0)
    stuck = [post(3, 40, phase="forward_backward"), post(3, 39)]
    for now in range(11):
        assert judge.judge(stuck, float(now)) is None
    failure = judge.judge(stuck, 10.5)
    assert failure is not None
    assert failure.rank == 1
    assert "no rank has made progress for 10 s" in str(failure)
    assert "the others wait for rank 1, in step 3, encoder" in str(failure)


def test_an_evaluation_has_longer_for_it_may_load_a_model():
    judge = StallJudge(10.0)
    busy = [post(3, 40, phase="evaluation"), post(3, 41, phase="evaluation")]
    assert all(judge.judge(busy, float(now)) is None for now in range(0, 41, 4))
    assert judge.judge(busy, 41.0) is not None


def test_any_ranks_progress_is_the_runs():
    judge = StallJudge(10.0)
    for now in range(100):
        assert judge.judge([post(3, 40), post(3, 39, tick=now // 8)], float(now)) is None


def test_nothing_is_a_stall_before_the_first_step_or_after_the_last():
    judge = StallJudge(10.0)
    for now in range(100):
        assert judge.judge([post(None, 1), post(None, 1)], float(now)) is None
        assert judge.judge([post(1, 1), {"at": None}], float(now)) is None


def test_what_a_suspended_process_has_not_heard_is_no_stall():
    judge = StallJudge(10.0)
    stuck = [post(3, 40), post(3, 39)]
    assert judge.judge(stuck, 0.0) is None
    assert judge.judge(stuck, 3_600.0) is None
    assert judge.judge(stuck, 3_605.0) is None


def test_who_waits_for_whom_is_told_a_line_a_rank():
    posts = [post(3, 40, phase="exchange"), post(3, 39), post(3, 40, phase="exchange")]
    assert find_behind(posts) == [1]
    assert find_behind(posts[:1]) == []
    assert tell_standings(posts).splitlines() == [
        "  rank 0 on host: step 3, exchange for 1 s, waits for rank 1, samples key-40",
        "  rank 1 on host: step 3, encoder for 1 s, is waited for, samples key-39",
        "  rank 2 on host: step 3, exchange for 1 s, waits for rank 1, samples key-40",
    ]
    many = tell_standings([post(3, 40)] * 500 + [post(3, 39)])
    assert "rank 500 on host: step 3, encoder for 1 s, is waited for" in many
    assert many.splitlines()[-1] == "  … and 469 more ranks"


def test_a_process_of_this_host_is_known_to_run_to_be_stopped_and_to_be_gone():
    process = subprocess.Popen([sys.executable, "-c", "import time; print(flush=True); time.sleep(60)"], stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None
        process.stdout.readline()
        own = own_place()
        assert own is not None
        from kappaspeech.processes import read_stat

        place = [own[0], own[1], process.pid, read_stat(process.pid).started]
        assert process_state(place) == "running"
        assert process_state(["elsewhere", *place[1:]]) == process_state(None) == "unknown"
        assert process_state([*place[:3], place[3] - 1]) == "gone"
        os.kill(process.pid, signal.SIGSTOP)
        deadline = time.monotonic() + patience(10)
        while process_state(place) != "stopped":
            assert time.monotonic() < deadline
    finally:
        process.kill()
    deadline = time.monotonic() + patience(10)
    while process_state(place) != "gone":
        assert time.monotonic() < deadline
    process.wait()


def test_a_launcher_that_ends_is_missed():
    script = (
        "import os, subprocess, sys, time; from kappaspeech.ranks.launch_parent import LaunchParent; own = LaunchParent(); "
        "print(own.is_gone(), flush=True); sys.stdin.readline(); print(own.is_gone(), flush=True)"
    )
    starter = f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {script!r}]).wait()"
    launcher = subprocess.Popen([sys.executable, "-c", starter], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert launcher.stdin is not None
    assert launcher.stdout is not None
    assert launcher.stdout.readline() == "False\n"
    launcher.kill()
    launcher.wait()
    launcher.stdin.write("\n")
    launcher.stdin.close()
    assert launcher.stdout.readline() == "True\n"
    assert not LaunchParent().is_gone()


def test_phases_count_what_ranks_share_and_signs_of_life_apart():
    clock = PhaseClock()
    clock.begin_step(4)
    clock.enter("data")
    turns = clock.num_turns
    clock.tick()
    assert (clock.num_turns, clock.num_ticks) == (turns, 1)
    clock.end_steps()
    assert clock.mark.step is None
