"""Forgetting at an equal level of what was learnt: paths interpolated, and their uncertainty over seeds and utterances.

A path is what a run had learnt (WER, or training loss) and what it had forgotten, at each of its evaluations.

N utterances · R resamples, the observed one first · S seeds · T evaluations
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from kappaspeech.evaluation.bootstrap import CONFIDENCE, NUM_RESAMPLES, FloatArray, interval, resampled_rates, two_sided_p_value

# A level counts only if nearly all resamples reach it: if many don't, those that do are no fair sample.
_MIN_REACHED = 0.95


@dataclass(frozen=True)
class LanguageErrors:
    """Word errors (T, N) of one language's utterances at each evaluation, and their reference words (N,)."""

    errors_TN: FloatArray
    lengths_N: FloatArray


@dataclass(frozen=True)
class Path:
    """One run's evaluations in the order of training: what falls as it learns (R, T), and its forgetting (T,), nats a token.

    `is_sampled`: utterances are behind it, which were resampled.
    """

    rates_RT: FloatArray
    forgetting_T: FloatArray
    is_sampled: bool = True


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds with its 95 % interval over seeds and utterances: None of one seed without utterances, of which there is
    nothing to resample. `reached` is the share of resamples that have a mean."""

    mean: float
    interval: tuple[float, float] | None
    by_seed: tuple[float, ...]
    reached: float


@dataclass(frozen=True)
class Gap(Estimate):
    """A difference, with its two-sided p of the same resamples, None if the interval is."""

    p_value: float | None


def wer_path(languages: Mapping[str, LanguageErrors], forgetting_T: FloatArray) -> Path:
    """The path of the languages' mean WER, its utterances resampled. Paths of equal utterances draw the same ones."""
    rates = []
    for number, (_, counted) in enumerate(sorted(languages.items())):
        observed_T = counted.errors_TN.sum(axis=1) / max(counted.lengths_N.sum(), 1)
        resampled_RT = resampled_rates(counted.errors_TN, counted.lengths_N, seed=(0, number))
        rates.append(np.concatenate([observed_T[None], resampled_RT]))
    return Path(np.mean(rates, axis=0), forgetting_T)


def fixed_path(values_T: FloatArray, forgetting_T: FloatArray) -> Path:
    """The path of a value that no sample of utterances is behind, such as the training loss: only seeds are resampled."""
    return Path(np.tile(values_T, (NUM_RESAMPLES + 1, 1)), forgetting_T, is_sampled=False)


def cross(path: Path, level: float) -> FloatArray:
    """Forgetting (R,) at which the path first comes down to `level`, linear between evaluations; NaN if it never does.

    A path that starts at `level` or below has its first forgetting.
    """
    rates_RT, forgetting_T = path.rates_RT, path.forgetting_T
    below_RT = rates_RT <= level
    reached_R = below_RT.any(axis=1)
    after_R = below_RT.argmax(axis=1)
    before_R = np.maximum(after_R - 1, 0)
    rows = np.arange(len(rates_RT))
    high_R, low_R = rates_RT[rows, before_R], rates_RT[rows, after_R]
    # if the first evaluation is below already, both ends are that evaluation
    fall_R = high_R - low_R
    share_R = np.divide(high_R - level, fall_R, out=np.ones_like(fall_R), where=fall_R > 0)
    found_R = forgetting_T[before_R] + share_R * (forgetting_T[after_R] - forgetting_T[before_R])
    return np.where(reached_R, found_R, np.nan)


def draw_seeds(num_seeds: int) -> NDArray[np.int64]:
    """The seeds that each resample takes, with replacement (R, S); the observed resample takes each once."""
    drawn_RS = np.random.default_rng(1).integers(0, num_seeds, size=(NUM_RESAMPLES, num_seeds))
    return np.concatenate([np.arange(num_seeds)[None], drawn_RS])


def price(paths: Sequence[Path], level: float) -> Estimate | None:
    """An arm's forgetting when its runs first reach `level`; None if one never does, or many resamples don't."""
    return _estimate(_cross_all(paths, level), is_sampled=_is_sampled(paths))


def price_gap(first: Sequence[Path], second: Sequence[Path], level: float) -> Gap | None:
    """`second`'s price minus `first`'s at WER `level`, runs paired by their place: seed by seed, the same utterances drawn."""
    values_RS = _cross_all(second, level) - _cross_all(first, level)
    estimate = _estimate(values_RS, is_sampled=_is_sampled([*first, *second]))
    if estimate is None:
        return None
    gaps_R = mean_of_drawn(values_RS)[1:]
    p_value = None if estimate.interval is None else two_sided_p_value(gaps_R[~np.isnan(gaps_R)])
    return Gap(estimate.mean, estimate.interval, estimate.by_seed, estimate.reached, p_value)


def _cross_all(paths: Sequence[Path], level: float) -> FloatArray:
    return np.stack([cross(path, level) for path in paths], axis=1)


def mean_of_drawn(values_RS: FloatArray) -> FloatArray:
    """Each resample's mean over seeds, (R,), the observed one first, with the utterances and seeds that it drew; NaN if a seed
    has no value in it.

    Both parts are added: the mean over all seeds with the drawn utterances, and the way to the drawn seeds of their observed
    values, which are noisy with utterances already. Means of few seeds that are drawn again vary less than those of other seeds
    would, so that way is as much longer as Student's t asks for.
    """
    observed_S = values_RS[0]
    ways_R = observed_S[draw_seeds(len(observed_S))].mean(axis=1) - observed_S.mean()
    return np.asarray(values_RS.mean(axis=1) + widening(len(observed_S)) * ways_R)


def widening(num_seeds: int) -> float:
    """The factor √(n/(n−1))·t₍ₙ₋₁₎/z at `CONFIDENCE` by which a bootstrap's percentiles of n values are too close to their mean
    (Hesterberg, The American Statistician 69, 2015); 1 of one value, which has no spread."""
    from scipy.special import ndtri, stdtrit

    if num_seeds == 1:
        return 1.0
    upper = (1 + CONFIDENCE) / 2
    return float(np.sqrt(num_seeds / (num_seeds - 1)) * stdtrit(num_seeds - 1, upper) / ndtri(upper))


def _is_sampled(paths: Sequence[Path]) -> bool:
    return any(path.is_sampled for path in paths)


def _estimate(values_RS: FloatArray, *, is_sampled: bool) -> Estimate | None:
    observed, *_ = values_RS
    if np.isnan(observed).any():
        return None
    means_R = mean_of_drawn(values_RS)[1:]
    known_R = ~np.isnan(means_R)
    reached = float(known_R.mean())
    if reached < _MIN_REACHED:
        return None
    varies = is_sampled or len(observed) > 1
    return Estimate(float(observed.mean()), interval(means_R[known_R]) if varies else None, tuple(map(float, observed)), reached)
