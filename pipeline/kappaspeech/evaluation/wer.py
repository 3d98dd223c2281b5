"""Word error rate by language and test set, with intervals: normalise, align, count; `bootstrap` resamples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

from kappaspeech.evaluation.alignment import ALIGNER_NAMES, Aligner, WerCount, align_characters, align_words
from kappaspeech.evaluation.bootstrap import FloatArray, interval, resampled_rates, two_sided_p_value
from kappaspeech.speech.normalisers import normalise_text, normaliser_of

# "chosen": by language; "basic": Whisper's basic one for all, as Whisper is measured outside of English
Scheme = Literal["chosen", "basic", "none"]
SCHEMES: tuple[Scheme, ...] = ("chosen", "basic", "none")


@dataclass(frozen=True)
class Hypothesis:
    """One utterance: what was said and what the model wrote, how long it is, and how its text ended (`decoding.Ending`); and its
    data set, if there are several."""

    key: str
    language: str
    reference: str
    hypothesis: str
    seconds: float = 0.0
    ending: str = "end"
    dataset: str = ""

    def to_json(self) -> dict[str, Any]:
        return {name: value for name, value in asdict(self).items() if name != "dataset" or value}


def normaliser_name(language: str, scheme: Scheme = "chosen") -> str:
    """The name of the normaliser that `normalise` uses for a language, as results record it."""
    if scheme == "none":
        return "none"
    return normaliser_of(language if scheme == "chosen" else "")


def normalise(text: str, language: str, scheme: Scheme = "chosen") -> str:
    """Whisper's English normaliser for English; its basic one, keeping umlauts and other diacritics, for languages whose words
    that leaves whole; for languages whose scripts have marks of their own, and for Turkish, one that does
    (`speech.normalisers`).

    "basic" takes the basic one for all; "none" splits at white space and changes nothing else.
    """
    if scheme != "none":
        text = normalise_text(text, language if scheme == "chosen" else "", "whisper")
    return " ".join(text.split())


def count_words(hypotheses: Sequence[Hypothesis], scheme: Scheme = "chosen", *, aligner: Aligner = "jiwer") -> list[WerCount]:
    """The word edits of each utterance, after normalisation."""
    return [align_words(*_pair(item, scheme), aligner) for item in hypotheses]


def count_characters(hypotheses: Sequence[Hypothesis], scheme: Scheme = "chosen") -> list[WerCount]:
    """The character edits of each utterance, after normalisation; spaces count, and a letter with its marks is one character."""
    return [align_characters(*_pair(item, scheme)) for item in hypotheses]


def _pair(item: Hypothesis, scheme: Scheme) -> tuple[str, str]:
    return normalise(item.reference, item.language, scheme), normalise(item.hypothesis, item.language, scheme)


def pool(counts: Sequence[WerCount]) -> WerCount:
    """The sum of counts."""
    return WerCount(
        sum(count.substitutions for count in counts),
        sum(count.deletions for count in counts),
        sum(count.insertions for count in counts),
        sum(count.reference_length for count in counts),
    )


def measure(hypotheses: Sequence[Hypothesis], *, aligner: Aligner = "jiwer", seed: int = 0) -> dict[str, Any]:
    """The report on test sets, as JSON: by language WER with its counts, CER and interval; their mean; WER of all pooled. Of
    several sets the same of each, in `sets`.

    Intervals are percentile bootstraps over utterances, deterministic under `seed`. The mean is over languages, so that the
    larger test set doesn't outvote the smaller. A language without a reference word has no rate (null) and no part in it.
    `aligner` counts the words; characters are always jiwer's.
    """
    words, characters = count_words(hypotheses, aligner=aligner), count_characters(hypotheses)
    report = _measure(hypotheses, words, characters, aligner=aligner, seed=seed)
    names = sorted({item.dataset for item in hypotheses})
    if len(names) < 2:
        return report
    sets = {}
    for name in names:
        chosen = [i for i, item in enumerate(hypotheses) if item.dataset == name]
        of_set = [hypotheses[i] for i in chosen]
        sets[name] = _measure(of_set, [words[i] for i in chosen], [characters[i] for i in chosen], aligner=aligner, seed=seed)
    return {**report, "sets": sets}


def by_set(report: Mapping[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """The languages of each set in a report on several, as "language, set", with their part; none in a report on one."""
    sets = report.get("sets", {}).items()
    return [(f"{language}, {name}", part) for name, of_set in sets for language, part in of_set.get("languages", {}).items()]


def _measure(
    hypotheses: Sequence[Hypothesis], words: Sequence[WerCount], characters: Sequence[WerCount], *, aligner: Aligner, seed: int
) -> dict[str, Any]:
    languages, resampled = {}, []
    for number, language in enumerate(_languages(hypotheses)):
        chosen = [i for i, item in enumerate(hypotheses) if item.language == language]
        counts = [words[i] for i in chosen]
        total, of_characters = pool(counts), pool([characters[i] for i in chosen])
        rates = resampled_rates(_errors(counts), _lengths(counts), seed=(seed, number))
        languages[language] = {
            "wer": _or_null(total.rate),
            "interval": list(interval(rates)),
            "cer": _or_null(of_characters.rate),
            "normaliser": normaliser_name(language),
            "num_utterances": len(chosen),
            **asdict(total),
        }
        if total.reference_length:
            resampled.append(rates)
    measured = [report for report in languages.values() if report["wer"] is not None]
    everything = pool(words)
    pooled = resampled_rates(_errors(words), _lengths(words), seed=(seed,))
    return {
        "mean_wer": _mean([report["wer"] for report in measured]),
        "mean_interval": list(interval(np.mean(resampled, axis=0))) if resampled else None,
        "mean_cer": _mean([report["cer"] for report in measured]),
        "pooled_wer": _or_null(everything.rate),
        "pooled_interval": list(interval(pooled)) if words else None,
        "pooled": asdict(everything),
        "aligner": ALIGNER_NAMES[aligner],
        "languages": languages,
    }


def measure_sensitivity(hypotheses: Sequence[Hypothesis]) -> dict[str, Any]:
    """WER under each normaliser, as JSON: by scheme, the mean over languages and each language's rate.

    What "none" adds is case, punctuation and ways of writing numbers; what "chosen" takes from "basic" is English spelling.
    """
    report: dict[str, Any] = {}
    for scheme in SCHEMES:
        counts = count_words(hypotheses, scheme)
        rates = {
            language: _or_null(pool([c for c, item in zip(counts, hypotheses, strict=True) if item.language == language]).rate)
            for language in _languages(hypotheses)
        }
        measured = [rate for rate in rates.values() if rate is not None]
        report[scheme] = {"mean_wer": _mean(measured), "languages": rates}
    return report


def compare_hypotheses(first: Sequence[Hypothesis], second: Sequence[Hypothesis], *, seed: int = 0) -> dict[str, Any]:
    """WER of `second` minus WER of `first` on the same utterances, as JSON: by language, of their mean, and pooled.

    Each with a paired percentile interval and the two-sided p of the bootstrap: how often the sign turns when utterances are
    drawn again (Bisani & Ney 2004). Raises `ValueError` if the two don't hold the same keys and references.
    """
    ours, theirs = _align_keys(first, second)
    counts, other = count_words(ours), count_words(theirs)
    languages, gaps = {}, []
    for number, language in enumerate(_languages(ours)):
        chosen = [i for i, item in enumerate(ours) if item.language == language]
        before, after = [counts[i] for i in chosen], [other[i] for i in chosen]
        if not pool(before).reference_length:
            continue
        gap = _resampled_gap(before, after, seed=(seed, number))
        languages[language] = {**_describe(pool(after).rate - pool(before).rate, gap), "num_utterances": len(chosen)}
        gaps.append(gap)
    if not languages:
        raise ValueError("there is no reference word to count errors against")
    mean = sum(report["difference"] for report in languages.values()) / len(languages)
    pooled = _resampled_gap(counts, other, seed=(seed,))
    return {
        "mean": _describe(mean, np.mean(gaps, axis=0)),
        "pooled": _describe(pool(other).rate - pool(counts).rate, pooled),
        "languages": languages,
    }


def _align_keys(first: Sequence[Hypothesis], second: Sequence[Hypothesis]) -> tuple[list[Hypothesis], list[Hypothesis]]:
    # two sets may have a key in common
    ours, theirs = (sorted(items, key=lambda item: (item.key, item.reference)) for items in (first, second))
    if [(item.key, item.reference) for item in ours] != [(item.key, item.reference) for item in theirs]:
        raise ValueError("the two sets of hypotheses aren't of the same utterances")
    return ours, theirs


def _resampled_gap(before: Sequence[WerCount], after: Sequence[WerCount], *, seed: tuple[int, ...]) -> FloatArray:
    # equal seeds and lengths draw the same utterances on both sides
    rates = [resampled_rates(_errors(counts), _lengths(counts), seed=seed) for counts in (after, before)]
    return rates[0] - rates[1]


def _describe(difference: float, gaps: FloatArray) -> dict[str, Any]:
    return {"difference": difference, "interval": list(interval(gaps)), "p_value": two_sided_p_value(gaps)}


def _languages(hypotheses: Sequence[Hypothesis]) -> list[str]:
    return sorted({item.language for item in hypotheses})


def _errors(counts: Sequence[WerCount]) -> FloatArray:
    return np.array([count.errors for count in counts], dtype=np.float64)


def _lengths(counts: Sequence[WerCount]) -> FloatArray:
    return np.array([count.reference_length for count in counts], dtype=np.float64)


def _mean(rates: Sequence[float]) -> float | None:
    return sum(rates) / len(rates) if rates else None


def _or_null(rate: float) -> float | None:
    """The rate, or None for NaN, which JSON doesn't have."""
    return rate if rate == rate else None
