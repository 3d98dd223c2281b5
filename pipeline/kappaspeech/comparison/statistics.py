"""Arms of several seeds in numbers: mean and spread over seeds, and differences paired by utterance and by seed.

N utterances · R resamples · S seeds
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from statistics import fmean, stdev
from typing import Any

import numpy as np

from kappaspeech.comparison.frontier import mean_of_drawn
from kappaspeech.comparison.runs import Arm, RunSummary
from kappaspeech.errors import InputError
from kappaspeech.evaluation.bootstrap import FloatArray, interval, resampled_rates, two_sided_p_value
from kappaspeech.evaluation.wer import Hypothesis, count_words


@dataclass(frozen=True)
class _Counts:
    """Word errors and reference words of one language's utterances, in the order of their keys."""

    errors_N: FloatArray
    lengths_N: FloatArray

    @property
    def rate(self) -> float:
        return float(self.errors_N.sum() / self.lengths_N.sum())

    def resample(self, number: int) -> FloatArray:
        """Rates (R,); alike in number, runs draw the same utterances."""
        return resampled_rates(self.errors_N, self.lengths_N, seed=(0, number))


def spread(values: Sequence[float]) -> dict[str, Any]:
    """Mean and standard deviation over seeds (n − 1; null of one seed), and each value, as JSON."""
    return {"mean": fmean(values), "sd": stdev(values) if len(values) > 1 else None, "by_seed": list(values)}


def measure_arm(arm: Arm) -> dict[str, Any]:
    """WER after training as JSON: by language and their unweighted mean, each over seeds.

    `interval` is a bootstrap over utterances of the mean over these seeds: it says what other test utterances would give, and
    `sd` what other seeds would.
    """
    counts = [_count(run) for run in arm.runs]
    languages, resampled = {}, []
    for number, language in enumerate(_languages(counts)):
        rates = np.mean([by_language[language].resample(number) for by_language in counts], axis=0)
        resampled.append(rates)
        values = [by_language[language].rate for by_language in counts]
        languages[language] = {**spread(values), "interval": list(interval(rates))}
    means = [fmean(c.rate for c in by_language.values()) for by_language in counts]
    return {"mean": {**spread(means), "interval": list(interval(np.mean(resampled, axis=0)))}, "languages": languages}


def compare_arms(first: Arm, second: Arm) -> dict[str, Any]:
    """WER of `second` minus WER of `first` as JSON: by language and of their mean, over the seeds that both have.

    Runs are paired by seed and by utterance: each resample draws the same utterances for all of them, and the gap is
    averaged over seeds. `interval` and the two-sided `p_value` of that bootstrap answer for these seeds; `interval_over_seeds`
    draws the seeds, too, as forgetting at equal WER does, and is null for one seed.
    """
    pairs = [(_count(ours), _count(theirs)) for ours, theirs in first.shared_with(second)]
    languages, resampled, by_seed = {}, [], []
    for number, language in enumerate(_languages([counts for pair in pairs for counts in pair])):
        gaps_SR = np.stack([after[language].resample(number) - before[language].resample(number) for before, after in pairs])
        values = [after[language].rate - before[language].rate for before, after in pairs]
        languages[language] = _describe(values, gaps_SR)
        resampled.append(gaps_SR)
        by_seed.append(values)
    means = [fmean(values) for values in zip(*by_seed, strict=True)]
    return {"mean": _describe(means, np.mean(resampled, axis=0)), "languages": languages}


def _describe(values: Sequence[float], gaps_SR: FloatArray) -> dict[str, Any]:
    gaps_R = gaps_SR.mean(axis=0)
    over_seeds_R = mean_of_drawn(np.concatenate([np.array([values]), gaps_SR.T]))[1:]
    return {
        **spread(values),
        "interval": list(interval(gaps_R)),
        "p_value": two_sided_p_value(gaps_R),
        "interval_over_seeds": list(interval(over_seeds_R)) if len(values) > 1 else None,
    }


def check_same_utterances(arms: Sequence[Arm]) -> None:
    """Raise `InputError` if two runs were tested on different utterances."""
    runs = [run for arm in arms for run in arm.runs]
    for run in runs[1:]:
        if _utterances(run) != _utterances(runs[0]):
            raise InputError(f"{run.path} and {runs[0].path} were tested on different utterances. Evaluate them on the same.")


def _utterances(run: RunSummary) -> list[tuple[str, str, str]]:
    return sorted((item.key, item.language, item.reference) for item in run.hypotheses)


def _count(run: RunSummary) -> Mapping[str, _Counts]:
    return _count_words(tuple(sorted(run.hypotheses, key=lambda item: item.key)))


@cache
def _count_words(hypotheses: tuple[Hypothesis, ...]) -> Mapping[str, _Counts]:
    """Word counts by language; one without a reference word has no rate and no part."""
    found = {}
    for language in sorted({item.language for item in hypotheses}):
        counts = count_words([item for item in hypotheses if item.language == language])
        if any(count.reference_length for count in counts):
            errors = np.array([count.errors for count in counts], dtype=np.float64)
            found[language] = _Counts(errors, np.array([count.reference_length for count in counts], dtype=np.float64))
    if not found:
        raise InputError("No test utterance has a reference word, so there is no WER to compare.")
    return found


def _languages(counts: Sequence[Mapping[str, _Counts]]) -> list[str]:
    return sorted(counts[0])
