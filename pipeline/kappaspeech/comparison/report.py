"""The comparison as numbers (report.json), as a page (report.html) and as a plot (report.png, report.svg)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from kappaspeech.artefacts import write_json, write_text
from kappaspeech.comparison.curves import draw_forgetting, draw_loss, draw_wer, text_keys
from kappaspeech.comparison.page import make_page
from kappaspeech.comparison.runs import Arm
from kappaspeech.comparison.statistics import check_same_utterances
from kappaspeech.comparison.summary import summarise
from kappaspeech.comparison.task_scores import check_same_items
from kappaspeech.comparison.theme import themed, write_figure

_COLUMNS = 2
_PANEL_INCHES = (6.6, 3.9)


def write_report(arms: Sequence[Arm], folder: Path, *, missing: Mapping[str, str]) -> tuple[dict[str, Any], list[Path]]:
    """Write report.json, report.html, report.png and report.svg to `folder`; return what the first holds, and their paths.

    `missing` names what of an experiment isn't there, with the reason. Raises `InputError` if arms were tested on different
    utterances or questions.
    """
    check_same_utterances(arms)
    check_same_items(arms)
    summary = summarise(arms, missing=missing)
    folder.mkdir(parents=True, exist_ok=True)
    paths = {suffix: folder / f"report.{suffix}" for suffix in ("json", "html", "png", "svg")}
    write_json(paths["json"], summary)
    with themed("report"):
        figure = _draw(arms)
        write_figure(figure, paths["png"])
        write_figure(figure, paths["svg"])
    write_text(paths["html"], make_page(arms, summary))
    return summary, list(paths.values())


def _draw(arms: Sequence[Arm]) -> Any:
    """Figure 1 and what belongs to it: WER over steps, in whole and by language, against forgetting, and the loss."""
    from matplotlib.figure import Figure

    languages = sorted(arms[0].runs[0].last["wer"]["languages"])
    texts = [text for text in text_keys([run for arm in arms for run in arm.runs]) if text[1] == "perplexity"]
    panels: list[Any] = [lambda axes: draw_wer(axes, arms, clock="steps"), lambda axes: draw_wer(axes, arms, clock="minutes")]
    panels += [lambda axes, lang=lang: draw_wer(axes, arms, clock="steps", language=lang) for lang in languages]
    panels += [
        lambda axes, lang=lang, title=title: draw_forgetting(axes, arms, language=lang, key="perplexity", title=title)
        for lang, _, title in texts
    ]
    panels.append(lambda axes: draw_loss(axes, arms))
    num_rows = -(-len(panels) // _COLUMNS)
    figure = Figure(figsize=(_COLUMNS * _PANEL_INCHES[0], num_rows * _PANEL_INCHES[1]), layout="constrained")
    grid = figure.subplots(num_rows, _COLUMNS, squeeze=False).flatten()
    for axes, draw in zip(grid, panels, strict=False):
        draw(axes)
    for axes in grid[len(panels) :]:
        axes.set_visible(False)
    return figure
