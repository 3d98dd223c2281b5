"""The quickstart's training on real pretrained weights, if a quickstart's output folder was brought along."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from gpu_sections.cases import PRESETS, REPOSITORY, Case, Context, Report, run_command

_SELECTIONS = {"smallest κ": "selection.json", "largest κ": "selection-inverse.json"}
# what is left for the last checkpoint and evaluation
_ENDING_SECONDS = 60.0


def cases(context: Context) -> list[Case]:
    models = context.models
    if models is None:
        return []
    return [Case(arm, train(name), 240) for arm, name in _SELECTIONS.items() if (models / name).exists()]


def train(selection: str) -> Callable[[Context, Report], None]:
    """A case that trains what this file selects, in the quickstart's folder but with its results in scratch."""

    def run(context: Context, report: Report) -> None:
        assert context.models is not None
        folder = context.scratch / Path(selection).stem
        preset = "zero3.json" if context.device.type == "cuda" else "zero3_cpu.json"
        values = {
            "run_dir": folder,
            "unfreeze.selection": selection,
            "data.feature_cache_dir": "null",
            "training.time_budget_seconds": max(10.0, context.seconds_left - _ENDING_SECONDS),
            "deepspeed": PRESETS / preset,
        }
        words = [word for key, value in values.items() for word in ("--set", f"{key}={value}")]
        seconds, _ = run_command(context, "train", REPOSITORY / "launch/configs/quickstart.yaml", *words, cwd=context.models)
        evaluations, steps = read_lines(folder / "evaluations.jsonl"), read_lines(folder / "steps.jsonl")
        steps = [step for step in steps if step["objective"] == "transcript"]
        speed = sorted(step["audio_seconds_per_second"] for step in steps)[len(steps) // 2]
        report.add(seconds_of_the_command=seconds, evaluations=evaluations, num_steps=len(steps), audio_seconds_per_second=speed)
        errors = [f"{item['wer']['mean_wer']:.1%}" for item in evaluations]
        report.add(line=f"{len(steps)} steps, {speed:.0f} audio-s/s; WER {' → '.join(errors)}")

    return run


def read_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []
