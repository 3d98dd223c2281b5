"""The comparison in sentences: the verdict first, then each arm's difference to the reference."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from kappaspeech.evaluation.bootstrap import NUM_RESAMPLES

# the smallest p that so many resamples can speak of
_SMALLEST_P = 2 / (NUM_RESAMPLES + 1)


def say_p(p_value: float) -> str:
    """A p as a table has it: `0.024`, and `≤ 0.001` at the floor of the resampling."""
    return f"≤ {_SMALLEST_P:.3f}" if p_value <= 1.001 * _SMALLEST_P else f"{p_value:.3f}"


def say_equals_p(p_value: float) -> str:
    """A p in a sentence: `p = 0.024`, `p ≤ 0.001`."""
    said = say_p(p_value)
    return f"p {said}" if said.startswith("≤") else f"p = {said}"


def say_gap(mean: float, interval: Sequence[float], *, unit: str = "", digits: int = 1) -> tuple[str, str]:
    """A difference as `24.2 points less` and its interval with signs that agree: `20.0 to 28.8`, or `3.1 less to 0.4 more`."""
    word = "more" if mean > 0 else "less"
    # a zero added makes −0.0 a zero without a sign
    low, high = sorted((bound if word == "more" else -bound) + 0.0 for bound in interval)
    size = f"{abs(mean):.{digits}f}{f' {unit}' if unit else ''} {word}"
    if low >= 0:
        return size, f"{low:.{digits}f} to {high:.{digits}f}"
    other = "less" if word == "more" else "more"
    return size, f"{-low:.{digits}f} {other} to {high:.{digits}f} {word}" if high >= 0 else f"{-low:.{digits}f} {other}"


def say_verdict(summary: Mapping[str, Any]) -> str:
    """The result in one or two sentences: the arm of lowest WER, and the one that forgets least."""
    arms = summary["arms"]
    if len(arms) == 1:
        return _say_alone(arms[0])
    first = arms[0]
    best = min(arms, key=lambda arm: arm["wer"]["mean"]["mean"])
    said = f"{best['arm']} has the lowest mean WER, {100 * best['wer']['mean']['mean']:.1f} %"
    unsure = _not_told_apart(best, first, arms)
    said += f"; chance could explain its lead over {_list(unsure)}." if unsure else "."
    growth = {arm["arm"]: value for arm in arms if (value := _growth(arm)) is not None}
    if len(growth) < len(arms):
        return said
    least = min(growth, key=lambda name: growth[name])
    factor = math.exp(growth[least])
    subject = "It also keeps" if least == best["arm"] else f"{least} keeps"
    return f"{said} {subject} text best: perplexity is {factor:.2f} times what it was before training."


def _say_alone(arm: Mapping[str, Any]) -> str:
    """Before → after, for one arm, of which there is nothing to compare."""
    before = fmean(value for value in arm["wer_before"].values() if value is not None)
    parts = [f"mean WER {100 * before:.0f} → {100 * arm['wer']['mean']['mean']:.1f} %"]
    for language, text in arm["text"].items():
        parts.append(f"{language} perplexity {text['perplexity_before']['mean']:.0f} → {text['perplexity']['mean']:.0f}")
    return f"{arm['arm']}: {'; '.join(parts)}."


def _not_told_apart(best: Mapping[str, Any], first: Mapping[str, Any], arms: Sequence[Mapping[str, Any]]) -> list[str]:
    """The arms over which the best one's lead may be chance, as far as differences to the reference say it."""
    if best is first:
        return [arm["arm"] for arm in arms[1:] if _holds_zero(arm)]
    return [first["arm"]] if _holds_zero(best) else []


def _holds_zero(arm: Mapping[str, Any]) -> bool:
    low, high = arm["difference"]["mean"]["interval"]
    return bool(low <= 0 <= high)


def _growth(arm: Mapping[str, Any]) -> float | None:
    """The growth of the mean loss on the texts; None without texts."""
    if not arm["text"]:
        return None
    return fmean(math.log(text["perplexity"]["mean"] / text["perplexity_before"]["mean"]) for text in arm["text"].values())


def say_differences(summary: Mapping[str, Any]) -> list[str]:
    """Each arm's WER, and its difference to the reference, which is named."""
    first, *others = summary["arms"]
    if not others:
        return []
    said = [f"The reference, {first['arm']}: mean WER {100 * first['wer']['mean']['mean']:.1f} %."]
    for arm in others:
        gap = arm["difference"]["mean"]
        size, interval = say_gap(100 * gap["mean"], [100 * bound for bound in gap["interval"]], unit="points")
        known = ": it could be chance" if _holds_zero(arm) else ""
        said.append(
            f"{arm['arm']}: {100 * arm['wer']['mean']['mean']:.1f} %, {size} than {first['arm']} "
            f"(95 %: {interval}; {say_equals_p(gap['p_value'])}){known}."
        )
    return said


def _list(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
