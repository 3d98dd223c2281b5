from __future__ import annotations

import time
from dataclasses import asdict

import pytest

from kappaspeech.config.training_config import TrainingConfig
from kappaspeech.planning.duration import StepTime
from kappaspeech.training.forecast import Forecast, describe, read_alignment_work


def test_it_is_told_once_after_ten_steps_without_those_that_warm_up():
    forecast = Forecast(TrainingConfig(num_steps=100))
    told = [forecast.time_step(30.0 if step <= 3 else 2.0, step) for step in range(1, 31)]
    assert [step for step, text in enumerate(told, start=1) if text] == [10]
    assert told[9] == "about 0:03 h left: 90 steps of 2 s"


def test_evaluations_to_come_are_counted_at_the_first_ones_time():
    forecast = Forecast(TrainingConfig(num_steps=100, evaluate_every_steps=25))
    forecast.time_evaluation(time.monotonic() - 20.0)
    told = [forecast.time_step(1.0, step) for step in range(1, 11)][-1]
    # at 25, 50, 75 and 100
    assert told == "about 0:03 h left: 90 steps of 1 s and 4 evaluation(s) of 20 s"


def test_a_run_that_goes_on_near_its_end_counts_what_is_left():
    forecast = Forecast(TrainingConfig(num_steps=100, evaluate_every_steps=50))
    assert [forecast.time_step(1.0, step) for step in range(51, 61)][-1] == "about 40 s left: 40 steps of 1 s"
    assert all(Forecast(TrainingConfig(num_steps=5)).time_step(1.0, step) is None for step in range(1, 6))


def test_the_time_left_follows_the_recent_steps():
    forecast = Forecast(TrainingConfig(num_steps=1000, evaluate_every_steps=500))
    forecast.time_evaluation(time.monotonic() - 20.0)
    assert forecast.seconds_left(0) is None
    for step in range(1, 4):
        forecast.time_step(30.0, step)
        assert forecast.seconds_left(step) is None
    forecast.time_step(2.0, 4)
    assert forecast.seconds_left(4) == pytest.approx(996 * 2 + 2 * 20, abs=1)
    for step in range(5, 301):
        forecast.time_step(3.0, step)
    assert forecast.seconds_left(300) == pytest.approx(700 * 3 + 2 * 20, abs=1)


def test_long_times_are_told_in_hours():
    assert describe([10.0], 3600, None, 1) == "about 10:00 h left: 3600 steps of 10 s"


def test_steps_that_align_the_adaptor_alone_say_nothing_of_the_others():
    forecast = Forecast(TrainingConfig(num_steps=100, alignment_steps=40))
    told = [forecast.time_step(0.1 if step <= 40 else 2.0, step) for step in range(1, 61)]
    assert [step for step, text in enumerate(told, start=1) if text] == [50]
    assert told[49] == "about 0:02 h left: 50 steps of 2 s"
    assert forecast.work(100) == 60 + forecast.work(40) < 70


def test_a_run_that_aligns_and_no_more_tells_of_its_end_too():
    forecast = Forecast(TrainingConfig(num_steps=100, alignment_steps=100))
    told = [forecast.time_step(2.0, step) for step in range(1, 61)]
    assert {step: text for step, text in enumerate(told, start=1) if text} == {10: "about 0:03 h left: 90 steps of 2 s"}
    assert forecast.seconds_left(60) == pytest.approx(40 * 2.0)


def test_steps_that_align_the_adaptor_alone_tell_of_the_others_by_the_plan():
    step = StepTime(0.1, 0.4, 0.9, 0.0, 0.1, 0.3, 0.2, 0.0, total=2.0)
    work = read_alignment_work({"alignment_seconds": 0.1, "step_seconds": asdict(step)})
    assert work == pytest.approx(0.05)
    forecast = Forecast(TrainingConfig(num_steps=1000, alignment_steps=400), alignment_work=work)
    for number in range(1, 4):
        forecast.time_step(9.0, number)
        assert forecast.seconds_left(number) is None
    for number in range(4, 101):
        forecast.time_step(0.1, number)
    # 300 more that align, and 600 with the LLM
    assert forecast.seconds_left(100) == pytest.approx(300 * 0.1 + 600 * 2.0)
    # the bar's time left goes by the same
    assert forecast.work(1000) - forecast.work(100) == pytest.approx(300 * 0.05 + 600)


@pytest.mark.parametrize("total", [0.1, 1000.0])
def test_a_plan_that_is_far_off_leaves_the_bar_moving(total):
    step = StepTime(0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, total=total)
    assert 0 < read_alignment_work({"alignment_seconds": 0.2, "step_seconds": asdict(step)}) <= 1
    assert Forecast(TrainingConfig(num_steps=2)).work(1) == 1
    assert read_alignment_work({"error": "a layer that nobody knows"}) == 0.2
