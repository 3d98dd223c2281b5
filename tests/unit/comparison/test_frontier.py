"""Forgetting at equal WER, on paths whose answer is known."""

from __future__ import annotations

import numpy as np
import pytest

from kappaspeech.comparison.frontier import (
    LanguageErrors,
    Path,
    cross,
    draw_seeds,
    fixed_path,
    price,
    price_gap,
    wer_path,
    widening,
)
from kappaspeech.evaluation.bootstrap import NUM_RESAMPLES

NUM_WORDS = 10


def make_path(rates, forgetting, *, num_utterances=40, rng=None, languages=("en",)):
    """Utterances of ten words, each of which errs at the evaluation's rate: exactly, or by a draw of `rng`."""
    found = {}
    for language in languages:
        lengths_N = np.full(num_utterances, float(NUM_WORDS))
        if rng is None:
            errors_TN = np.array([np.full(num_utterances, rate * NUM_WORDS) for rate in rates])
        else:
            errors_TN = np.array([rng.binomial(NUM_WORDS, min(1.0, rate), num_utterances) for rate in rates], dtype=float)
        found[language] = LanguageErrors(errors_TN, lengths_N)
    return wer_path(found, np.array(forgetting, dtype=float))


def test_a_level_between_two_evaluations_is_interpolated():
    path = fixed_path(np.array([1.0, 0.6, 0.2]), np.array([0.0, 0.1, 0.5]))
    assert cross(path, 0.4) == pytest.approx(np.full(NUM_RESAMPLES + 1, 0.3))
    assert cross(path, 0.6) == pytest.approx(np.full(NUM_RESAMPLES + 1, 0.1))


def test_the_first_crossing_counts_and_a_level_never_reached_has_no_price():
    rates_RT = np.array([[1.0, 0.2, 0.9, 0.1], [1.0, 0.9, 0.8, 0.7], [0.1, 0.9, 0.9, 0.9]])
    found_R = cross(Path(rates_RT, np.array([0.0, 0.4, 0.8, 1.2])), 0.6)
    assert found_R[0] == pytest.approx(0.2)
    assert np.isnan(found_R[1])
    # it was there before training
    assert found_R[2] == 0


def test_the_observed_rate_is_the_mean_of_the_languages_pooled_rates():
    even = LanguageErrors(np.array([[10.0, 10.0], [5.0, 5.0]]), np.array([10.0, 10.0]))
    uneven = LanguageErrors(np.array([[3.0, 1.0], [0.0, 1.0]]), np.array([6.0, 2.0]))
    rates_RT = wer_path({"en": uneven, "de": even}, np.array([0.0, 1.0])).rates_RT
    assert rates_RT.shape == (NUM_RESAMPLES + 1, 2)
    assert rates_RT[0] == pytest.approx([(1.0 + 4 / 8) / 2, (0.5 + 1 / 8) / 2])


def test_arms_are_compared_at_equal_wer_and_not_at_their_last_step():
    # the one has gone further down and forgotten more: at 50 % it had forgotten less
    further = [make_path([1.0, 0.5, 0.1], [0.0, 0.1, 0.9])]
    slower = [make_path([1.0, 0.8, 0.5], [0.0, 0.2, 0.4])]
    gap = price_gap(further, slower, 0.5)
    assert gap is not None
    assert gap.mean == pytest.approx(0.3)
    assert gap.interval == pytest.approx((0.3, 0.3))
    assert price(further, 0.2) is not None
    assert price(slower, 0.2) is None


def test_a_level_that_many_resamples_miss_is_left_out():
    rng = np.random.default_rng(3)
    paths = [make_path([1.0, 0.3], [0, 1], rng=rng)]
    lowest = float(paths[0].rates_RT[0, -1])
    # about half of all resamples end above the observed end
    assert price(paths, lowest) is None
    assert price(paths, lowest + 0.1) is not None


def test_each_resample_draws_seeds_for_all_arms_alike():
    drawn_RS = draw_seeds(3)
    assert list(drawn_RS[0]) == [0, 1, 2]
    assert drawn_RS.shape == (NUM_RESAMPLES + 1, 3)
    assert {tuple(row) for row in drawn_RS[1:]} == {(a, b, c) for a in range(3) for b in range(3) for c in range(3)}
    # seeds that differ widely, alike in both arms, leave the paired gap certain
    first = [make_path([1.0, 0.0], [0.0, cost]) for cost in (0.2, 1.0, 5.0)]
    second = [make_path([1.0, 0.0], [0.0, cost + 0.4]) for cost in (0.2, 1.0, 5.0)]
    gap = price_gap(first, second, 0.5)
    assert gap is not None
    assert gap.interval == pytest.approx((0.2, 0.2))
    assert gap.p_value == pytest.approx(2 / (NUM_RESAMPLES + 1))
    own = price(first, 0.5)
    assert own is not None
    assert own.interval[1] - own.interval[0] > 1


def test_one_seed_without_utterances_has_no_interval_and_no_p():
    """All its resamples are alike: an interval without width and the smallest p would be told of one number."""
    first = [fixed_path(np.array([1.0, 0.0]), np.array([0.0, cost])) for cost in (0.2, 0.6)]
    second = [fixed_path(np.array([1.0, 0.0]), np.array([0.0, cost])) for cost in (0.8, 1.0)]
    alone, gap = price(first[:1], 0.5), price_gap(first[:1], second[:1], 0.5)
    assert alone is not None
    assert gap is not None
    assert (alone.mean, alone.interval) == (pytest.approx(0.1), None)
    assert (gap.mean, gap.interval, gap.p_value) == (pytest.approx(0.3), None, None)
    both = price_gap(first, second, 0.5)
    assert both is not None
    # as wide as Student's t of two numbers, whose 97.5 % lie at 12.7, but for what a normal's say of a bootstrap's
    assert both.interval == pytest.approx((0.25 - 0.05 * widening(2), 0.25 + 0.05 * widening(2)))
    assert widening(2) == pytest.approx(12.706 / 1.960 * 2**0.5, rel=1e-3)
    assert widening(500) == pytest.approx(1, abs=0.01)


def test_the_interval_covers_the_true_gap():
    """Simulated arms of few seeds, which vary more than utterances do: seeds that are drawn again are three times too alike."""
    num_seeds, true_gap, covered, too_narrow, trials = 3, 0.15, 0, 0, 60
    for trial in range(trials):
        rng = np.random.default_rng(trial)
        first, second = [], []
        for _ in range(num_seeds):
            shared, speed = rng.normal(0, 0.1), rng.uniform(0.8, 1.2)
            rates = [1.0, 0.7 * speed, 0.3 * speed, 0.1]
            for paths, extra in ((first, 0.0), (second, true_gap)):
                # forgetting is a line in WER, so the price at any level is known
                slope = 1.0 + extra + shared + rng.normal(0, 0.2)
                paths.append(make_path(rates, [2 * slope * (1 - rate) for rate in rates], rng=rng, num_utterances=30))
        gap = price_gap(first, second, 0.5)
        assert gap is not None
        covered += gap.interval[0] <= true_gap <= gap.interval[1]
        as_drawn_R = np.array(gap.by_seed)[draw_seeds(num_seeds)].mean(axis=1)
        too_narrow += not np.quantile(as_drawn_R, 0.025) <= true_gap <= np.quantile(as_drawn_R, 0.975)
    assert 0.88 <= covered / trials <= 1.0
    assert too_narrow / trials > 0.15
