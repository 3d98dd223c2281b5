"""Learning curves of several runs in one figure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pipeline.comparison.runs import RunSummary

_STYLES = ("-", "--", ":", "-.")


def draw_runs(runs: Sequence[RunSummary]) -> Any:
    """A matplotlib figure of loss, WER and text perplexity over steps: a colour an arm, a line style a language."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    # the drawing has no screen, and its SVG no random ids
    mpl.rcParams["svg.hashsalt"] = "kappaspeech"
    figure = Figure(figsize=(12, 3.8), layout="constrained")
    loss, wer, text = figure.subplots(1, 3)
    for number, run in enumerate(runs):
        colour = f"C{number}"
        steps = [record["step"] for record in run.steps]
        loss.plot(steps, _smooth([record["loss_nats"] for record in run.steps]), color=colour, label=run.arm)
        at = [record["step"] for record in run.evaluations]
        for style, language in zip(_STYLES, sorted(run.last["wer"]["languages"]), strict=False):
            values = [100 * record["wer"]["languages"][language]["wer"] for record in run.evaluations]
            wer.plot(at, values, style, color=colour, marker="o", markersize=3, label=f"{run.arm}, {language}")
        for style, language in zip(_STYLES, sorted(run.last["text"]), strict=False):
            values = [record["text"][language]["perplexity"] for record in run.evaluations]
            text.plot(at, values, style, color=colour, marker="o", markersize=3, label=f"{run.arm}, {language}")
    for axes, label in ((loss, "training loss, nats a token"), (wer, "test WER, %"), (text, "text perplexity")):
        axes.set_xlabel("step")
        axes.set_title(label, loc="left", fontsize=10)
        axes.grid(alpha=0.3)
        if axes.get_lines():
            axes.legend(fontsize=8)
    loss.set_ylim(bottom=0)
    wer.set_ylim(bottom=0)
    return figure


def _smooth(values: Sequence[float], factor: float = 0.9) -> list[float]:
    """Exponential moving average, corrected for its start."""
    smoothed, total, weight = [], 0.0, 0.0
    for value in values:
        total = factor * total + (1 - factor) * value
        weight = factor * weight + (1 - factor)
        smoothed.append(total / weight)
    return smoothed
