from __future__ import annotations

from types import SimpleNamespace

import pytest

from kappaspeech.training import phases
from kappaspeech.training.phases import PhaseClock


@pytest.fixture
def wait(monkeypatch):
    """Let seconds go by; no others do."""
    now = [100.0]
    monkeypatch.setattr(phases, "time", SimpleNamespace(monotonic=lambda: now[0]))

    def wait(seconds: float) -> None:
        now[0] += seconds

    return wait


def test_phases_share_out_the_whole_time(wait):
    clock = PhaseClock()
    wait(1)
    clock.begin_step(3)
    clock.enter("data")
    wait(20)
    clock.enter("encoder")
    wait(10)
    clock.enter("data")
    wait(4)
    assert clock.take_seconds() == {"rest": 1, "data": 24, "encoder": 10}


def test_taken_time_is_not_counted_again(wait):
    clock = PhaseClock()
    clock.enter("optimizer")
    wait(20)
    assert clock.take_seconds()["optimizer"] == 20
    assert clock.take_seconds()["optimizer"] == 0


def test_the_mark_names_phase_step_and_samples():
    clock = PhaseClock()
    assert (clock.mark.phase, clock.mark.step, clock.mark.keys) == ("rest", None, ())
    clock.begin_step(7)
    clock.enter("data")
    began = clock.mark.began_seconds
    clock.name_samples(["a", "b"])
    assert (clock.mark.phase, clock.mark.step, clock.mark.keys) == ("data", 7, ("a", "b"))
    assert clock.mark.began_seconds == began
    clock.enter("encoder")
    assert (clock.mark.phase, clock.mark.step, clock.mark.keys) == ("encoder", 7, ("a", "b"))
    clock.begin_step(8)
    assert (clock.mark.step, clock.mark.keys) == (8, ())
