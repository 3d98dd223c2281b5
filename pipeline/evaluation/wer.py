"""Word error rate by language, with intervals: normalise, align, count, resample."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

NUM_RESAMPLES = 2_000
CONFIDENCE = 0.95


@dataclass(frozen=True)
class Hypothesis:
    """One utterance: what was said and what the model wrote."""

    key: str
    language: str
    reference: str
    hypothesis: str

    def to_json(self) -> dict[str, str]:
        return asdict(self)


@dataclass(frozen=True)
class WerCount:
    """Edits between a reference and a hypothesis, in words, or in characters."""

    substitutions: int
    deletions: int
    insertions: int
    reference_length: int

    @property
    def errors(self) -> int:
        return self.substitutions + self.deletions + self.insertions

    @property
    def rate(self) -> float:
        """Errors over reference length, a fraction that can exceed 1; NaN without a reference."""
        return self.errors / self.reference_length if self.reference_length else float("nan")


def normalise(text: str, language: str) -> str:
    """Whisper's English normaliser for English; its basic one, keeping umlauts and other diacritics, for the rest."""
    cleaned = _normaliser("en" if language == "en" else "")(text)
    return " ".join(cleaned.split())


@cache
def _normaliser(language: str) -> Callable[[str], str]:
    from whisper.normalizers import BasicTextNormalizer, EnglishTextNormalizer

    chosen: Callable[[str], str] = EnglishTextNormalizer() if language == "en" else BasicTextNormalizer(remove_diacritics=False)
    return chosen


def count_words(hypotheses: Sequence[Hypothesis]) -> list[WerCount]:
    """The word edits of each utterance, after normalisation."""
    return [_align(*_pair(item), by="words") for item in hypotheses]


def count_characters(hypotheses: Sequence[Hypothesis]) -> list[WerCount]:
    """The character edits of each utterance, after normalisation; spaces count."""
    return [_align(*_pair(item), by="characters") for item in hypotheses]


def _pair(item: Hypothesis) -> tuple[str, str]:
    return normalise(item.reference, item.language), normalise(item.hypothesis, item.language)


def _align(reference: str, hypothesis: str, *, by: str) -> WerCount:
    import jiwer

    if not reference:
        # jiwer refuses an empty reference; all that was written is inserted
        return WerCount(0, 0, len(hypothesis.split() if by == "words" else hypothesis), 0)
    done: Any = (jiwer.process_words if by == "words" else jiwer.process_characters)(reference, hypothesis)
    length = done.hits + done.substitutions + done.deletions
    return WerCount(done.substitutions, done.deletions, done.insertions, length)


def pool(counts: Sequence[WerCount]) -> WerCount:
    """The sum of counts."""
    return WerCount(
        sum(count.substitutions for count in counts),
        sum(count.deletions for count in counts),
        sum(count.insertions for count in counts),
        sum(count.reference_length for count in counts),
    )


def measure(hypotheses: Sequence[Hypothesis], *, seed: int = 0) -> dict[str, Any]:
    """The report on a test set, as JSON: by language WER with its counts, CER and interval; their mean; WER of all pooled.

    Intervals are percentile bootstraps over utterances (Bisani & Ney 2004) at `CONFIDENCE`, deterministic under `seed`. The
    mean is over languages, so that the larger test set doesn't outvote the smaller.
    """
    languages = {}
    for language in sorted({item.language for item in hypotheses}):
        chosen = [item for item in hypotheses if item.language == language]
        counts = count_words(chosen)
        total, characters = pool(counts), pool(count_characters(chosen))
        languages[language] = {
            "wer": total.rate,
            "interval": list(bootstrap_interval(counts, seed=seed)),
            "cer": characters.rate,
            "num_utterances": len(chosen),
            **asdict(total),
        }
    everything = pool(count_words(hypotheses))
    mean = sum(report["wer"] for report in languages.values()) / len(languages) if languages else float("nan")
    return {"mean_wer": mean, "pooled_wer": everything.rate, "languages": languages}


def bootstrap_interval(counts: Sequence[WerCount], *, seed: int) -> tuple[float, float]:
    """Percentile interval of the pooled rate under resampling of utterances."""
    rates = _resampled_rates(counts, seed=seed)
    low, high = np.quantile(rates, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return float(low), float(high)


def paired_difference(
    first: Sequence[Hypothesis], second: Sequence[Hypothesis], *, seed: int = 0
) -> tuple[float, tuple[float, float]]:
    """WER of `second` minus WER of `first` on the same utterances, and its paired bootstrap interval.

    `ValueError` where the two don't hold the same keys and references.
    """
    ours = sorted(first, key=lambda item: item.key)
    theirs = sorted(second, key=lambda item: item.key)
    if [(item.key, item.reference) for item in ours] != [(item.key, item.reference) for item in theirs]:
        raise ValueError("the two sets of hypotheses aren't of the same utterances")
    counts, other = count_words(ours), count_words(theirs)
    gap = _resampled_rates(other, seed=seed) - _resampled_rates(counts, seed=seed)
    low, high = np.quantile(gap, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return pool(other).rate - pool(counts).rate, (float(low), float(high))


def _resampled_rates(counts: Sequence[WerCount], *, seed: int) -> NDArray[np.float64]:
    """Pooled rates of `NUM_RESAMPLES` resamples; equal seeds and lengths draw the same utterances."""
    errors = np.array([count.errors for count in counts], dtype=np.float64)
    lengths = np.array([count.reference_length for count in counts], dtype=np.float64)
    rng = np.random.default_rng(seed)
    drawn = rng.multinomial(len(counts), np.full(len(counts), 1 / len(counts)), size=NUM_RESAMPLES)
    rates: NDArray[np.float64] = (drawn @ errors) / np.maximum(drawn @ lengths, 1)
    return rates
