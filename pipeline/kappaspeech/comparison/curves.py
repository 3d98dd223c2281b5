"""Curves of arms: WER and loss over training, and WER against what is forgotten."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from statistics import fmean
from typing import Any, Literal

from kappaspeech.colours import PAPER
from kappaspeech.comparison.runs import Arm, RunSummary
from kappaspeech.comparison.theme import Style, label_ends, label_points
from kappaspeech.escaping import for_picture

Clock = Literal["steps", "minutes"]
Record = Mapping[str, Any]
# Before it has learned to listen a model may write twice as many words as were said: what is above is cut off.
_CEILING_PERCENT = 110.0


def draw_wer(axes: Any, arms: Sequence[Arm], *, clock: Clock, language: str | None = None) -> None:
    """Mean WER over training, or a language's: a line an arm, the mean over its seeds, in a band from the least to the most."""

    def rate(record: Record) -> float:
        value = record["wer"]["mean_wer"] if language is None else record["wer"]["languages"][language]["wer"]
        return math.nan if value is None else 100 * float(value)

    values = _draw_evaluations(axes, arms, rate, clock=clock)
    axes.set_ylim(0, min(_CEILING_PERCENT, 1.05 * max((v for v in values if not math.isnan(v)), default=1.0)))
    axes.set_title("Mean WER on test speech, %" if language is None else f"WER on {for_picture(language)} test speech, %")
    label_ends(axes, [(style, *_end(arm, rate, clock)) for style, arm in _styled(arms)])


def draw_text(axes: Any, arms: Sequence[Arm], *, language: str, key: str, title: str) -> None:
    """What text costs over training: `key` of the text scores of `language`."""

    def value(record: Record) -> float:
        return float(record["text"][language][key])

    _draw_evaluations(axes, arms, value, clock="steps")
    if key == "perplexity":
        _log_plain(axes.yaxis, axes.set_yscale)
    axes.set_title(for_picture(title))
    label_ends(axes, [(style, *_end(arm, value, "steps")) for style, arm in _styled(arms)])


def draw_loss(axes: Any, arms: Sequence[Arm]) -> None:
    """Training loss in nats a target token, smoothed."""
    ends = []
    for style, arm in _styled(arms):
        curves = [smooth([step["loss_nats"] for step in run.steps]) for run in arm.runs]
        means = [fmean(values) for values in zip(*curves, strict=False)]
        (line,) = axes.plot(range(1, len(means) + 1), means, color=style.colour, linewidth=1.6)
        style.mark(line)
        if means:
            ends.append((style, float(len(means)), means[-1]))
    axes.set_ylim(bottom=0)
    axes.set_xlabel("step")
    axes.set_title("Training loss, nats a token")
    label_ends(axes, ends)


def draw_forgetting(axes: Any, arms: Sequence[Arm], *, language: str, key: str, title: str) -> None:
    """Every checkpoint's mean WER against what it costs in text: down is better speech, left is better text."""
    ends, ceiling = [], 0.0
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
            ceiling = max(ceiling, *ys)
            (line,) = axes.plot(xs, ys, color=style.colour, linewidth=1.0, alpha=0.6, marker=style.marker, markersize=3.5)
            (last,) = axes.plot(
                xs[-1:], ys[-1:], style.marker, color=style.colour, markersize=8, markeredgecolor=PAPER, markeredgewidth=1.0
            )
            style.mark(line, last)
        end = [(run.last["text"][language][key], 100 * (run.last["wer"]["mean_wer"] or math.nan)) for run in arm.runs]
        ends.append((style, max(x for x, _ in end), fmean(y for _, y in end)))
    axes.set_ylim(0, min(_CEILING_PERCENT, 1.05 * ceiling) or 1.0)
    if key == "perplexity":
        _log_plain(axes.xaxis, axes.set_xscale)
    axes.set_xlabel(for_picture(title))
    axes.set_title("Mean WER, %")
    label_points(axes, ends)


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


def _draw_evaluations(axes: Any, arms: Sequence[Arm], value: Callable[[Record], float], *, clock: Clock) -> list[float]:
    """Draw `value` of every evaluation; return all values drawn."""
    drawn: list[float] = []
    for style, arm in _styled(arms):
        xs, rows = _aligned(arm, value, clock)
        middle = [fmean(row) for row in rows]
        (line,) = axes.plot(xs, middle, color=style.colour, marker=style.marker, markeredgecolor=PAPER, markeredgewidth=0.6)
        style.mark(line)
        if len(arm.runs) > 1:
            band = axes.fill_between(
                xs, [min(row) for row in rows], [max(row) for row in rows], color=style.colour, alpha=0.16, linewidth=0
            )
            style.mark(band)
        drawn += [number for row in rows for number in row]
    axes.set_xlabel("step" if clock == "steps" else "minutes of training")
    axes.set_xlim(left=0)
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


def _log_plain(axis: Any, set_scale: Callable[[str], None]) -> None:
    """A logarithmic axis with plain numbers: a range of less than a decade has ticks as well."""
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

    set_scale("log")
    axis.set_major_locator(LogLocator(subs=(1.0, 1.5, 2.0, 3.0, 5.0, 7.0)))
    axis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axis.set_minor_formatter(NullFormatter())


def text_keys(runs: Sequence[RunSummary]) -> list[tuple[str, str, str]]:
    """What every evaluation of every run says of text: language, key, and what it is called."""
    names = {"perplexity": "perplexity of {} text", "kl_nats": "KL from the base model on {} text, nats a token"}
    records = [record["text"] for run in runs for record in run.evaluations]
    return [
        (language, key, name.format(language))
        for language in sorted(set.intersection(*(set(record) for record in records)))
        for key, name in names.items()
        if all(record[language].get(key) is not None for record in records)
    ]
