"""Learning rates by step."""

from __future__ import annotations

import itertools

import pytest

from kappaspeech.config.training_config import OptimizerConfig
from kappaspeech.training.learning_rate import rate_factor


def test_rates_warm_up_and_fall_along_a_cosine():
    config = OptimizerConfig(warmup_steps=4, schedule="cosine", final_fraction=0.1)
    factors = [rate_factor(step, num_steps=20, config=config) for step in range(20)]
    assert factors[:4] == [0.25, 0.5, 0.75, 1.0]
    assert factors[4] == 1.0
    assert factors[-1] == pytest.approx(0.1)
    assert all(later <= earlier for earlier, later in itertools.pairwise(factors[4:]))


def test_rates_stay_constant_by_choice():
    config = OptimizerConfig(warmup_steps=0, schedule="constant")
    assert {rate_factor(step, num_steps=9, config=config) for step in range(9)} == {1.0}


def test_the_alignment_has_a_schedule_of_its_own():
    config = OptimizerConfig(warmup_steps=2, schedule="cosine", final_fraction=0.1)
    alone = [[rate_factor(step, num_steps=count, config=config) for step in range(count)] for count in (8, 12)]
    together = [rate_factor(step, num_steps=20, config=config, alignment_steps=8) for step in range(20)]
    assert together == [*alone[0], *alone[1]]
