"""The anchor's weight as a controller, against a training of a few numbers that pulls away from its base."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from kappaspeech.config.replay_config import ReplayConfig
from kappaspeech.training.anchor_weight import AnchorWeight

NUM_STEPS, EVERY = 160, 5


def options(budget: float | None, least: float = 0.05) -> ReplayConfig:
    return ReplayConfig(texts={"de": "de.txt"}, anchor_weight=least, forgetting_budget_nats=budget)


def train(weight: AnchorWeight, *, seed: int, rate: float, steers: bool = True, stop: int | None = None) -> float:
    """The distance at the end of Adam's steps on a noisy pull towards a far place, held back by the anchor."""
    source = np.random.default_rng(seed)
    pull, curvature = 2 * source.normal(size=60), 0.05 * np.exp(1.5 * source.normal(size=60))
    place, first, second = np.zeros(60), np.zeros(60), np.zeros(60)
    for step in range(1, NUM_STEPS + 1):
        gradient = 0.3 * (place - pull) + 0.3 * source.normal(size=60) + weight.value * curvature * place
        first, second = 0.9 * first + 0.1 * gradient, 0.98 * second + 0.02 * gradient**2
        cosine = 0.05 + 0.475 * (1 + math.cos(math.pi * step / NUM_STEPS))
        place -= rate * cosine * first / (1 - 0.9**step) / (np.sqrt(second / (1 - 0.98**step)) + 1e-8)
        if steers and step % EVERY == 0:
            weight.steer(0.5 * float(curvature @ place**2))
        if step == stop:
            # as a run that is stopped goes on from its checkpoint
            state = json.loads(json.dumps(weight.to_json()))
            weight = AnchorWeight(options(weight._budget_nats))
            weight.restore(state)
    return 0.5 * float(curvature @ place**2)


@pytest.mark.parametrize("budget", [0.2, 0.5])
@pytest.mark.parametrize("rate", [0.02, 0.05])
def test_a_training_that_would_go_far_ends_within_a_tenth_of_its_budget(budget, rate):
    for seed in range(4):
        assert train(AnchorWeight(options(None)), seed=seed, rate=rate, steers=False) > 1.5 * budget
        assert train(AnchorWeight(options(budget)), seed=seed, rate=rate) == pytest.approx(budget, rel=0.1)


def test_a_training_that_stays_near_is_left_with_the_least_weight():
    weight = AnchorWeight(options(1e6))
    train(weight, seed=0, rate=0.02)
    assert weight.value == 0.05


def test_it_goes_on_from_a_checkpoint_as_if_nothing_had_been():
    whole, stopped = (train(AnchorWeight(options(0.2)), seed=1, rate=0.05, stop=stop) for stop in (None, 83))
    assert whole == stopped


def test_a_run_that_resumes_without_its_budget_has_the_configured_weight_again():
    weight, again = AnchorWeight(options(0.1)), AnchorWeight(options(None))
    weight.steer(0.5)
    again.restore(json.loads(json.dumps(weight.to_json())))
    assert weight.value > 0.06
    assert again.value == 0.05


@pytest.mark.parametrize("budget", [0.10, 0.13])
def test_a_weight_that_brings_the_model_no_nearer_is_lowered_to_the_one_that_kept_it_nearest(budget):
    """The distance of a real run at constant rates: 0.25 without the anchor, 0.118 with a weight of 0.3, 0.25 with one of 500."""
    weight = AnchorWeight(options(budget, least=0.01))
    distances = []
    for step in range(1, 61):
        measured = 0.12 + 0.14 / (1 + 60 * weight.value) + 0.016 * max(0.0, math.log(weight.value / 0.3))
        distances.append(min(1.0, step / 4) * measured)
        weight.steer(distances[-1])
    wanted = max(budget, 0.12 + 0.14 / 19)
    assert distances[-20:] == pytest.approx([wanted] * 20, rel=0.05)
    assert weight.value < 1
    assert weight.is_futile == (budget < 0.12)


def test_no_distance_raises_it_beyond_bounds():
    weight = AnchorWeight(options(0.1))
    for distance in (0.0, -1e-9, *[1e9] * 50):
        weight.steer(distance)
    assert weight.value == pytest.approx(0.05 * math.exp(12))
