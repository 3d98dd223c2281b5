"""Curves of arms: WER and loss over training, and WER against what is forgotten."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from statistics import fmean
from typing import Any, Literal

from kappaspeech.colours import FAINT, PAPER
from kappaspeech.comparison.runs import Arm, RunSummary
from kappaspeech.comparison.theme import Style, label_ends, label_points, log_plain
from kappaspeech.escaping import for_picture

Clock = Literal["steps", "minutes"]
Record = Mapping[str, Any]
# Before it has learned to listen a model may write twice as many words as were said: what is above is marked at the edge.
_CEILING_PERCENT = 110.0
# rates that differ by a smaller share of the largest lie close together
_CLOSE, _MARGIN = 0.5, 0.15
_NUM_TICKS = 5
_SHORT = {"perplexity": "perplexity", "kl_nats": "KL"}


def draw_wer(axes: Any, arms: Sequence[Arm], *, clock: Clock, language: str | None = None) -> None:
    """Mean WER over training, or a language's: a line an arm, the mean over its seeds, in a band from the least to the most."""

    def rate(record: Record) -> float:
        return _percent(record["wer"]["mean_wer"] if language is None else record["wer"]["languages"][language]["wer"])

    drawn = _draw_evaluations(axes, arms, rate, clock=clock)
    known = [(style, x, y) for style, x, y in drawn if not math.isnan(y)]
    _cut_off(axes, known, most=max((y for *_, y in known), default=1.0))
    over = "steps" if clock == "steps" else "time"
    axes.set_title(f"Mean WER over {over}" if language is None else f"WER in {for_picture(language)} over {over}")
    axes.set_ylabel("WER, %")
    label_ends(axes, [(style, *_end(arm, rate, clock)) for style, arm in _styled(arms)])


def draw_text(axes: Any, arms: Sequence[Arm], *, language: str, key: str) -> None:
    """Text scores over training: `key` of those of `language`."""

    def value(record: Record) -> float:
        return float(record["text"][language][key])

    _draw_evaluations(axes, arms, value, clock="steps")
    if key == "perplexity":
        log_plain(axes.yaxis, axes.set_yscale)
    axes.set_ylabel("nats a token" if key == "kl_nats" else "perplexity")
    name = _SHORT[key]
    axes.set_title(f"{name[0].upper()}{name[1:]} of {for_picture(language)} text over steps")
    label_ends(axes, [(style, *_end(arm, value, "steps")) for style, arm in _styled(arms)])


def draw_loss(axes: Any, arms: Sequence[Arm]) -> None:
    """Training loss in nats a target token, smoothed."""
    ends = []
    for style, arm in _styled(arms):
        # a seed may lack steps that it skipped
        curves = [dict(zip(run.loss_steps, smooth(run.losses), strict=True)) for run in arm.runs]
        known = sorted(set.intersection(*(set(curve) for curve in curves)))
        means = [fmean(curve[step] for curve in curves) for step in known]
        steps = [step + 1 for step in known]
        (line,) = axes.plot(steps, means, style.line, color=style.colour, linewidth=1.6)
        style.mark(line)
        if means:
            ends.append((style, float(steps[-1]), means[-1]))
    axes.set_ylim(bottom=0)
    axes.set_xlabel("step")
    axes.set_ylabel("nats a token")
    _few_ticks(axes.xaxis)
    axes.set_title("Training loss over steps")
    label_ends(axes, ends)


def draw_forgetting(axes: Any, arms: Sequence[Arm], *, language: str, key: str, title: str) -> None:
    """Every checkpoint's mean WER against what it costs in text: down is better speech, left is better text."""
    ends, drawn = [], []
    for style, arm in _styled(arms):
        for run in arm.runs:
            points = [
                (float(record["text"][language][key]), 100 * float(record["wer"]["mean_wer"]))
                for record in run.evaluations
                if record["wer"]["mean_wer"] is not None
            ]
            if not points:
                continue
            xs, ys = zip(*points, strict=True)
            drawn += [(style, x, y) for x, y in points]
            (line,) = axes.plot(
                xs, ys, style.line, color=style.colour, linewidth=1.0, alpha=0.6, marker=style.marker, markersize=3.5
            )
            (last,) = axes.plot(
                xs[-1:], ys[-1:], style.marker, color=style.colour, markersize=8, markeredgecolor=PAPER, markeredgewidth=1.0
            )
            style.mark(line, last)
        end = [(run.last["text"][language][key], _percent(run.last["wer"]["mean_wer"])) for run in arm.runs]
        ends.append((style, max(x for x, _ in end), fmean(y for _, y in end)))
    _cut_off(axes, drawn, most=max((y for *_, y in drawn), default=1.0))
    if key == "perplexity":
        log_plain(axes.xaxis, axes.set_xscale)
    else:
        _few_ticks(axes.xaxis)
    axes.set_xlabel(for_picture(title))
    axes.set_ylabel("mean WER, %")
    axes.set_title(f"WER against {_SHORT[key]} of {for_picture(language)} text")
    label_points(axes, ends)


def _percent(rate: float | None) -> float:
    """A rate in percent; NaN for one that isn't known."""
    return math.nan if rate is None else 100 * float(rate)


def _cut_off(axes: Any, drawn: Sequence[tuple[Style, float, float]], *, most: float) -> None:
    """End a WER axis at its ceiling; what lies above has a mark at the edge, and the range is written beside it.

    The axis begins at 0 unless arms that lie close together would then be one line.
    """
    floor, ceiling = 0.0, min(_CEILING_PERCENT, 1.05 * most) or 1.0
    shown = [y for *_, y in drawn if y <= _CEILING_PERCENT]
    if shown and 0 < (height := max(shown) - min(shown)) < _CLOSE * max(shown):
        floor, ceiling = max(0.0, min(shown) - _MARGIN * height), max(shown) + _MARGIN * height
    axes.set_ylim(floor, ceiling)
    above = [(style, x, y) for style, x, y in drawn if y > ceiling]
    if not above:
        return
    for style, x, _ in above:
        (mark,) = axes.plot([x], [ceiling], "^", color=style.colour, markersize=6, clip_on=False, zorder=3)
        style.mark(mark)
    low, high = min(y for *_, y in above), max(y for *_, y in above)
    span = f"{low:.0f} %" if round(low) == round(high) else f"{low:.0f} to {high:.0f} %"
    axes.annotate(
        f"▲ above: {span}",
        (0.98, 0.97),
        xycoords="axes fraction",
        ha="right",
        va="top",
        color=FAINT,
        fontsize=9,
        bbox={"facecolor": PAPER, "edgecolor": "none", "pad": 1.5},
    )


def _few_ticks(axis: Any) -> None:
    from matplotlib.ticker import MaxNLocator

    axis.set_major_locator(MaxNLocator(nbins=_NUM_TICKS, min_n_ticks=2))


def smooth(values: Sequence[float], factor: float = 0.9) -> list[float]:
    """Exponential moving average, corrected for its start."""
    smoothed, total, weight = [], 0.0, 0.0
    for value in values:
        total = factor * total + (1 - factor) * value
        weight = factor * weight + (1 - factor)
        smoothed.append(total / weight)
    return smoothed


def _styled(arms: Sequence[Arm]) -> list[tuple[Style, Arm]]:
    return [(Style(number, arm.name), arm) for number, arm in enumerate(arms)]


def _draw_evaluations(
    axes: Any, arms: Sequence[Arm], value: Callable[[Record], float], *, clock: Clock
) -> list[tuple[Style, float, float]]:
    """Draw `value` of every evaluation; return all that was drawn, with whose it is."""
    drawn: list[tuple[Style, float, float]] = []
    for style, arm in _styled(arms):
        xs, rows = _aligned(arm, value, clock)
        middle = [fmean(row) for row in rows]
        (line,) = axes.plot(
            xs, middle, style.line, color=style.colour, marker=style.marker, markeredgecolor=PAPER, markeredgewidth=0.6
        )
        style.mark(line)
        if len(arm.runs) > 1:
            band = axes.fill_between(
                xs, [min(row) for row in rows], [max(row) for row in rows], color=style.colour, alpha=0.16, linewidth=0
            )
            style.mark(band)
        drawn += [(style, x, number) for x, row in zip(xs, rows, strict=True) for number in row]
    axes.set_xlabel("step" if clock == "steps" else "minutes of training")
    axes.set_xlim(left=0)
    _few_ticks(axes.xaxis)
    return drawn


def _aligned(arm: Arm, value: Callable[[Record], float], clock: Clock) -> tuple[list[float], list[list[float]]]:
    """x of each evaluation that all of an arm's runs have, and the values of its seeds there; minutes are their mean."""
    by_step = [{record["step"]: record for record in run.evaluations} for run in arm.runs]
    steps = sorted(set.intersection(*(set(records) for records in by_step)))
    xs = [fmean(_when(records[step], clock) for records in by_step) for step in steps]
    return xs, [[value(records[step]) for records in by_step] for step in steps]


def _end(arm: Arm, value: Callable[[Record], float], clock: Clock) -> tuple[float, float]:
    xs, rows = _aligned(arm, value, clock)
    return xs[-1], fmean(rows[-1])


def _when(record: Record, clock: Clock) -> float:
    return float(record["step"]) if clock == "steps" else float(record["train_seconds"]) / 60


def text_keys(runs: Sequence[RunSummary]) -> list[tuple[str, str, str]]:
    """The text scores that every evaluation of every run has: language, key and name."""
    names = {"perplexity": "perplexity of {} text", "kl_nats": "KL from the base model on {} text, nats a token"}
    records = [record["text"] for run in runs for record in run.evaluations]
    return [
        (language, key, name.format(language))
        for language in sorted(set.intersection(*(set(record) for record in records)))
        for key, name in names.items()
        if all(record[language].get(key) is not None for record in records)
    ]
