"""The comparison as numbers (report.json), as a page (report.html) and as a plot (report.png, report.svg)."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from pipeline.artefacts import write_json, write_text, write_with
from pipeline.comparison.plots import draw_runs
from pipeline.comparison.runs import RunSummary
from pipeline.evaluation.wer import Hypothesis, paired_difference

SCHEMA_VERSION = 1
_NUM_EXAMPLES = 5


def write_report(runs: Sequence[RunSummary], folder: Path) -> list[Path]:
    """Write report.json, report.html, report.png and report.svg to `folder`; return their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = {suffix: folder / f"report.{suffix}" for suffix in ("json", "html", "png", "svg")}
    write_json(paths["json"], {"schema_version": SCHEMA_VERSION, "arms": [summarise(run, runs[0]) for run in runs]})
    figure = draw_runs(runs)
    for suffix in ("png", "svg"):
        # a drawing without a date: the same runs give the same bytes
        metadata = {"Date": None} if suffix == "svg" else {"Software": None}
        write_with(paths[suffix], lambda temporary, s=suffix, m=metadata: figure.savefig(temporary, format=s, metadata=m))  # type: ignore[misc]
    write_text(paths["html"], _page(runs, paths["svg"].read_text(encoding="utf-8")))
    return list(paths.values())


def summarise(run: RunSummary, reference: RunSummary) -> dict[str, Any]:
    """One arm in numbers. `difference` is this arm's WER minus the reference's, with a paired interval, by language."""
    last = run.last
    languages = sorted(last["wer"]["languages"])
    return {
        "arm": run.arm,
        "rule": run.record["selection_rule"],
        "num_selected": run.num_selected,
        "num_trained_parameters": run.record["num_trained_parameters"],
        "num_llm_trained_parameters": run.record["num_llm_trained_parameters"],
        "step": last["step"],
        "train_seconds": last["train_seconds"],
        "mean_wer": last["wer"]["mean_wer"],
        "wer": {language: last["wer"]["languages"][language] for language in languages},
        "wer_before": {language: report["wer"] for language, report in run.first["wer"]["languages"].items()},
        "difference": {} if run is reference else {language: _difference(reference, run, language) for language in languages},
        "text": last["text"],
        "text_before": run.first["text"],
        "mean_drift": fmean(run.drift.values()) if run.drift else 0.0,
    }


def _difference(reference: RunSummary, run: RunSummary, language: str) -> dict[str, Any]:
    gap, (low, high) = paired_difference(_of(reference.hypotheses, language), _of(run.hypotheses, language))
    return {"wer": gap, "interval": [low, high]}


def _of(hypotheses: Sequence[Hypothesis], language: str) -> list[Hypothesis]:
    return [item for item in hypotheses if item.language == language]


def table(runs: Sequence[RunSummary]) -> tuple[list[str], list[list[str]]]:
    """The comparison as a header and rows of text, one row an arm."""
    languages = sorted(runs[0].last["wer"]["languages"])
    texts = sorted(runs[0].last["text"])
    header = ["arm", "tensors", "trained parameters"]
    header += [f"WER {language} before → after (95 %)" for language in languages]
    header += [f"text perplexity {language} before → after" for language in texts] + ["drift", "minutes"]
    return header, [_row(summarise(run, runs[0]), languages, texts) for run in runs]


def _row(arm: dict[str, Any], languages: Sequence[str], texts: Sequence[str]) -> list[str]:
    cells = [arm["arm"], str(arm["num_selected"]), f"{arm['num_trained_parameters'] / 1e6:.1f} M"]
    for language in languages:
        low, high = arm["wer"][language]["interval"]
        before = arm["wer_before"].get(language, math.nan)
        cells.append(f"{before:.1%} → {arm['wer'][language]['wer']:.1%} ({low:.1%}–{high:.1%})")
    for language in texts:
        cells.append(f"{arm['text_before'][language]['perplexity']:.1f} → {arm['text'][language]['perplexity']:.1f}")
    return [*cells, f"{arm['mean_drift']:.3f}", f"{arm['train_seconds'] / 60:.1f}"]


_STYLE = """body{font:15px/1.5 system-ui,sans-serif;max-width:72rem;margin:2rem auto;padding:0 1rem;color:#1b1b1b}
table{border-collapse:collapse;margin:1rem 0}
th,td{padding:.35rem .8rem;border-bottom:1px solid #ccc;text-align:left;vertical-align:top}
td{font-variant-numeric:tabular-nums}svg{max-width:100%;height:auto}"""


def _page(runs: Sequence[RunSummary], svg: str) -> str:
    header, rows = table(runs)
    parts = [
        "<!doctype html><html lang=en><meta charset=utf-8><title>Runs compared</title>",
        f"<style>{_STYLE}</style><h1>Runs compared</h1>",
        _html_table(header, rows),
        svg[svg.index("<svg") :],
        "<p>WER after Whisper's English normaliser for English and its basic one, with diacritics kept, for other languages; "
        "intervals are percentile bootstraps over utterances. Drift is the mean of ‖W − W₀‖/‖W₀‖ over the selected tensors.</p>",
    ]
    for run in runs:
        parts.append(f"<h2>{html.escape(run.arm)}: {html.escape(run.record['selection_rule'])}</h2>")
        wrong = [item for item in run.hypotheses if item.reference != item.hypothesis]
        chosen = wrong[:_NUM_EXAMPLES] or run.hypotheses[:_NUM_EXAMPLES]
        caption = f"{len(wrong)} of {len(run.hypotheses)} test utterances differ from their reference, letter by letter."
        parts.append(f"<p>{caption}</p>")
        examples = [[item.language, item.reference, item.hypothesis] for item in chosen]
        parts.append(_html_table(["language", "said", "written"], examples))
    return "\n".join(parts) + "\n"


def _html_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    head = "".join(f"<th>{html.escape(cell)}" for cell in header)
    body = "".join("<tr>" + "".join(f"<td>{html.escape(cell)}" for cell in row) for row in rows)
    return f"<table><tr>{head}{body}</table>"
