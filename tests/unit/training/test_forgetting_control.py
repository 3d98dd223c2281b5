"""A budget's controller, against a training of a few numbers that pulls away from its base."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from kappaspeech.config.replay_config import ReplayConfig
from kappaspeech.training.forgetting_control import ForgettingControl

NUM_STEPS, EVERY = 160, 5


def options(budget: float | None, least: float = 0.05) -> ReplayConfig:
    return ReplayConfig(texts={"de": "de.txt"}, anchor_weight=least, forgetting_budget_nats=budget)


def resume(control: ForgettingControl) -> ForgettingControl:
    """The control of a run that is stopped and goes on from its checkpoint."""
    again = ForgettingControl(options(control._budget_nats, control._least))
    again.restore(json.loads(json.dumps(control.to_json())))
    return again


def train(control: ForgettingControl, *, seed: int, rate: float, steers: bool = True) -> float:
    """The distance at the end of Adam's steps on a noisy pull towards a far place, held back by the anchor."""
    source = np.random.default_rng(seed)
    pull, curvature = 2 * source.normal(size=60), 0.05 * np.exp(1.5 * source.normal(size=60))
    place, first, second = np.zeros(60), np.zeros(60), np.zeros(60)
    for step in range(1, NUM_STEPS + 1):
        gradient = 0.3 * (place - pull) + 0.3 * source.normal(size=60) + control.anchor_weight * curvature * place
        first, second = 0.9 * first + 0.1 * gradient, 0.98 * second + 0.02 * gradient**2
        cosine = 0.05 + 0.475 * (1 + math.cos(math.pi * step / NUM_STEPS))
        scheduled = rate * cosine * control.llm_rate_factor
        place -= scheduled * first / (1 - 0.9**step) / (np.sqrt(second / (1 - 0.98**step)) + 1e-8)
        if steers and step % EVERY == 0:
            control.steer(0.5 * float(curvature @ place**2))
    return 0.5 * float(curvature @ place**2)


def follow(control: ForgettingControl, *, lag: float, stop: int | None = None) -> list[float]:
    """The distances of a run at constant rates, by the numbers of a real one: 0.26 free, 0.12 with a weight of 0.3, 0.25 with 500.

    A distance goes `lag` of the way at each measurement, and less if the LLM is slow. Noise grows with the square of its rate.
    """
    distances = [0.0]
    for number in range(1, 31):
        weight, slowed = control.anchor_weight, control.llm_rate_factor
        noise = slowed**2 * (0.12 + 0.016 * max(0.0, math.log(weight / 0.3)))
        wanted = noise + 0.14 / (1 + 60 * weight)
        distances.append(distances[-1] + (wanted - distances[-1]) * lag * slowed * min(1.0, number / 4))
        control.steer(distances[-1])
        if number == stop:
            control = resume(control)
    return distances[1:]


@pytest.mark.parametrize("budget", [0.2, 0.5])
@pytest.mark.parametrize("rate", [0.02, 0.05])
def test_a_training_that_would_go_far_ends_within_a_tenth_of_its_budget(budget, rate):
    for seed in range(4):
        assert train(ForgettingControl(options(None)), seed=seed, rate=rate, steers=False) > 1.5 * budget
        control = ForgettingControl(options(budget))
        assert train(control, seed=seed, rate=rate) == pytest.approx(budget, rel=0.1)
        assert control.llm_rate_factor == 1.0


def test_a_training_that_stays_near_is_left_with_the_least_weight_and_its_rate():
    control = ForgettingControl(options(1e6))
    train(control, seed=0, rate=0.02)
    assert (control.anchor_weight, control.llm_rate_factor) == (0.05, 1.0)


@pytest.mark.parametrize("lag", [0.4, 0.8])
@pytest.mark.parametrize("budget", [0.08, 0.1])
def test_a_budget_that_no_weight_keeps_is_kept_by_a_lower_rate_of_the_llm(budget, lag):
    control = ForgettingControl(options(budget, least=0.01))
    assert follow(control, lag=lag)[-3:] == pytest.approx([budget] * 3, rel=0.1)
    assert control.anchor_weight < 1
    assert 0.5 < control.llm_rate_factor < 1


@pytest.mark.parametrize("stop", [6, 18, 25])
def test_it_goes_on_from_a_checkpoint_as_if_nothing_had_been(stop):
    whole, stopped = (follow(ForgettingControl(options(0.1, 0.01)), lag=0.4, stop=number) for number in (None, stop))
    assert whole == stopped


def test_a_state_of_a_version_that_raised_the_weight_alone_is_gone_on_with():
    control = ForgettingControl(options(0.1))
    control.restore({"sum": 1.0, "raised": 2.0, "gain": 0.7, "before": 0.1})
    assert (control.anchor_weight, control.llm_rate_factor) == (pytest.approx(0.05 * math.exp(2)), 1.0)


def test_a_run_that_resumes_without_its_budget_has_the_configured_weight_and_rate_again():
    control, again = ForgettingControl(options(0.01)), ForgettingControl(options(None))
    follow(control, lag=0.4)
    again.restore(json.loads(json.dumps(control.to_json())))
    assert control.llm_rate_factor < 1 < control.anchor_weight / 0.05
    assert (again.anchor_weight, again.llm_rate_factor) == (0.05, 1.0)


def test_a_weight_that_was_taken_for_futile_too_early_is_raised_again_once_the_llm_is_slower():
    control = ForgettingControl(options(0.1))
    # it seems to come nearer, and then to go away under whatever weight
    for distance in (0.15, 0.3, 0.28, *[0.3] * 8):
        control.steer(distance)
    slowed = control.llm_rate_factor
    low = control.anchor_weight
    for _ in range(8):
        control.steer(0.3)
    assert control.llm_rate_factor < slowed < 1
    assert control.anchor_weight > 2 * low


def test_no_distance_brings_them_beyond_bounds():
    control = ForgettingControl(options(0.1))
    for distance in (0.0, -1e-9, *[1e9] * 90):
        control.steer(distance)
    assert 0.05 < control.anchor_weight < 0.05 * math.exp(12.01)
    assert control.llm_rate_factor == pytest.approx(math.exp(-3))
