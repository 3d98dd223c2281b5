from __future__ import annotations

import time

import pytest

from kappaspeech.training.phases import PhaseClock


def test_phases_share_out_the_whole_time():
    clock = PhaseClock()
    began = time.monotonic()
    clock.begin_step(3)
    clock.enter("data")
    time.sleep(0.02)
    clock.enter("encoder")
    time.sleep(0.01)
    clock.enter("data")
    taken = clock.take_seconds()
    assert sum(taken.values()) == pytest.approx(time.monotonic() - began, abs=5e-3)
    assert taken["data"] >= 0.02
    assert taken["encoder"] >= 0.01


def test_taken_time_is_not_counted_again():
    clock = PhaseClock()
    clock.enter("optimizer")
    time.sleep(0.02)
    assert clock.take_seconds()["optimizer"] >= 0.02
    assert clock.take_seconds()["optimizer"] < 0.02


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
