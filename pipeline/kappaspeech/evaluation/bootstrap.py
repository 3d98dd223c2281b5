"""Percentile bootstrap over utterances (Bisani & Ney, ICASSP 2004): arrays in, arrays out.

N utterances · R resamples
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]

NUM_RESAMPLES = 2_000
CONFIDENCE = 0.95
# How often each utterance is drawn, for as many resamples as this allows to be held: 64 MiB.
_HELD_DRAWS = 1 << 23


def resampled_rates(errors_N: FloatArray, lengths_N: FloatArray, *, seed: tuple[int, ...]) -> FloatArray:
    """Pooled rates Σ errors / Σ lengths of `NUM_RESAMPLES` resamples (R,); equal seeds and N draw the same utterances.

    Errors of T systems (T, N) on these utterances give (R, T), each resample's utterances the same for all.
    """
    num_utterances = errors_N.shape[-1]
    if num_utterances == 0:
        return np.zeros((NUM_RESAMPLES, *errors_N.shape[:-1]))
    rng = np.random.default_rng(seed)
    shares_N = np.full(num_utterances, 1 / num_utterances)
    at_once = max(1, _HELD_DRAWS // num_utterances)
    rates = []
    for start in range(0, NUM_RESAMPLES, at_once):
        drawn_RN = rng.multinomial(num_utterances, shares_N, size=min(at_once, NUM_RESAMPLES - start))
        rates.append((errors_N @ drawn_RN.T / np.maximum(drawn_RN @ lengths_N, 1)).T)
    return np.concatenate(rates)


def resampled_hits(hits_N: FloatArray) -> FloatArray:
    """The shares of hits (1, or 0 for a miss) of resamples (R,); equal N draw the same, so that two models are paired."""
    return resampled_rates(hits_N, np.ones_like(hits_N), seed=(0,))


def compare_hits(hits_N: FloatArray, before_N: FloatArray) -> dict[str, Any]:
    """The difference of a model's share of hits to another's on the same items, with its interval, in pairs."""
    gaps_R = resampled_hits(hits_N) - resampled_hits(before_N)
    return {"difference": float(hits_N.mean()) - float(before_N.mean()), "interval": list(interval(gaps_R))}


def interval(values_R: FloatArray) -> tuple[float, float]:
    """The percentile interval at `CONFIDENCE`."""
    low, high = np.quantile(values_R, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return float(low), float(high)


def two_sided_p_value(gaps_R: FloatArray) -> float:
    """Twice the smaller share of resampled differences on either side of zero, itself included; never 0, at most 1.

    The observed set counts as one more resample, so that the smallest p that R resamples can speak of is 2/(R + 1).
    """
    smaller = min(int((gaps_R <= 0).sum()), int((gaps_R >= 0).sum()))
    return min(1.0, 2 * (smaller + 1) / (len(gaps_R) + 1))
