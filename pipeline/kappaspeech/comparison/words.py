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


def say_seeds(number: int) -> str:
    """A number of seeds: `1 seed`, `3 seeds`."""
    return f"{number} seed" + "s" * (number > 1)


def holds_zero(gap: Mapping[str, Any]) -> bool:
    """True if an interval of a difference, of several over seeds, has a zero, so that chance could explain its sign."""
    low, high = gap.get("interval_over_seeds") or gap["interval"]
    return bool(low <= 0 <= high)


def say_verdict(summary: Mapping[str, Any]) -> str:
    """The result in a few sentences: the arm of lowest WER, the one that forgets least, and how many seeds say so."""
    arms, lead = summary["arms"], summary["lead"]
    if lead is None:
        return _say_alone(arms[0])
    best = next(arm for arm in arms if arm["arm"] == lead["arm"])
    # means over other seeds don't compare
    rate = (
        f", {100 * best['wer']['mean']['mean']:.1f} %" if _have_same_seeds(arms) else " over the seeds that arms have in common"
    )
    said = f"{best['arm']} has the lowest mean WER{rate}"
    over = {name: gap for name, gap in lead["over"].items() if gap is not None}
    if unsure := [name for name, gap in over.items() if gap["mean"] >= 0 and holds_zero(gap)]:
        said += f"; chance could explain its lead over {_list(unsure)}"
    # it leads in pairs with the reference, which are over other seeds
    if ahead := [name for name, gap in over.items() if gap["mean"] < 0]:
        said += f"; on the seeds that both have it is behind {_list(ahead)}"
    if apart := [name for name, gap in lead["over"].items() if gap is None]:
        said += f"; it has no seed in common with {_list(apart)}"
    return " ".join([f"{said}.", *_say_text(arms, best["arm"]), _say_all_seeds(arms)])


def _say_alone(arm: Mapping[str, Any]) -> str:
    """Before → after, for one arm, of which there is nothing to compare."""
    before = fmean(value for value in arm["wer_before"].values() if value is not None)
    parts = [f"mean WER {100 * before:.0f} → {100 * arm['wer']['mean']['mean']:.1f} %"]
    for language, text in arm["text"].items():
        parts.append(f"{language} perplexity {text['perplexity_before']['mean']:.0f} → {text['perplexity']['mean']:.0f}")
    return f"{arm['arm']}, {say_seeds(len(arm['seeds']))}: {'; '.join(parts)}."


def _say_text(arms: Sequence[Mapping[str, Any]], best: str) -> list[str]:
    """The arm that keeps text best, in pairs with the reference, and those that keep it as well on a seed; none without texts."""
    if not all(arm["text"] for arm in arms):
        return []
    growth = {arm["arm"]: _growths(arm) for arm in arms}
    reference = growth[arms[0]["arm"]]
    gaps = {name: fmean(own[seed] - reference[seed] for seed in own if seed in reference) for name, own in growth.items()}
    least = min(gaps, key=lambda name: gaps[name])
    mine = growth[least]
    rivals = [
        name for name, own in growth.items() if name != least and any(own[seed] <= mine[seed] for seed in own if seed in mine)
    ]
    subject = "It also keeps" if least == best else f"{least} keeps"
    but = f", though on a seed {_list(rivals)} kept it as well" if rivals else ""
    factor = math.exp(fmean(mine.values()))
    return [f"{subject} text best: perplexity is {factor:.2f} times what it was before training{but}."]


def _growths(arm: Mapping[str, Any]) -> dict[int, float]:
    """The growth of the mean loss on the texts, by seed."""
    growths = {}
    for place, seed in enumerate(arm["seeds"]):
        pairs = [
            (text["perplexity"]["by_seed"][place], text["perplexity_before"]["by_seed"][place]) for text in arm["text"].values()
        ]
        growths[seed] = fmean(math.log(after / before) for after, before in pairs)
    return growths


def _have_same_seeds(arms: Sequence[Mapping[str, Any]]) -> bool:
    return len({tuple(arm["seeds"]) for arm in arms}) == 1


def _say_all_seeds(arms: Sequence[Mapping[str, Any]]) -> str:
    if _have_same_seeds(arms):
        number = len(arms[0]["seeds"])
        return f"Each arm has {say_seeds(number)}{': nothing is known of others' if number == 1 else ''}."
    own = (f"{arm['arm']} has {len(arm['seeds'])} ({', '.join(map(str, arm['seeds']))})" for arm in arms)
    return f"Arms differ in seeds: {'; '.join(own)}."


def say_differences(summary: Mapping[str, Any]) -> list[str]:
    """Each arm's WER and seeds, and its difference to the reference, which is named, with the seeds that both have."""
    first, *others = summary["arms"]
    if not others:
        return []
    said = [f"The reference, {first['arm']}: mean WER {_say_wer(first)}."]
    for arm in others:
        gap = arm["difference"]["mean"]
        size, interval = _say_points(gap, "interval")
        over = f"95 % over utterances: {interval}; {say_equals_p(gap['p_value'])}"
        if gap["interval_over_seeds"] is not None:
            over += f"; over seeds, too: {_say_points(gap, 'interval_over_seeds')[1]}"
        known = ": it could be chance" if holds_zero(gap) else ""
        said.append(
            f"{arm['arm']}: {_say_wer(arm)}, {size} than {first['arm']} ({over}; {say_seeds(len(gap['by_seed']))}){known}."
        )
    return said


def _say_points(gap: Mapping[str, Any], name: str) -> tuple[str, str]:
    """A difference of rates and the interval of this name, in points."""
    return say_gap(100 * gap["mean"], [100 * bound for bound in gap[name]], unit="points")


def _say_wer(arm: Mapping[str, Any]) -> str:
    return f"{100 * arm['wer']['mean']['mean']:.1f} % over {say_seeds(len(arm['seeds']))}"


def _list(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
