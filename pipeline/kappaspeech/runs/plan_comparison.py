"""A run's plan beside the measurements of its steps."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from kappaspeech.artefacts import read_json
from kappaspeech.json_lines import Record
from kappaspeech.runs.contents import RECORD_FILE, STEPS_FILE
from kappaspeech.runs.records import is_transcript_step, read_lines

# the first ones warm up
_FIRST_STEPS = 2


def compare_plan(run_dir: Path) -> dict[str, Any] | None:
    """The plan in run.json beside the steps' records; None if there was no plan, or too few steps."""
    plan = read_json(run_dir / RECORD_FILE, schema_version=1).get("plan")
    if not plan or "error" in plan:
        return None
    return compare_with_run(plan, read_lines(run_dir / STEPS_FILE, is_record=_is_comparable))


def _is_comparable(record: Record) -> bool:
    return is_transcript_step(record) and "peak_memory_bytes" in record


def compare_with_run(plan: Mapping[str, Any], steps: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """A plan's JSON beside a run's step records: the peak, and the median step without the first two, which warm up.

    None for a run of too few steps to compare.
    """
    settled = [float(step["seconds"]) for step in steps[_FIRST_STEPS:]]
    if not settled:
        return None
    # a GPU's records give the memory that torch has allocated, a CPU's the memory of the process
    key = "peak_bytes" if plan["assumptions"]["device"] == "cpu" else "allocated_bytes"
    peak, seconds = max(int(step["peak_memory_bytes"]) for step in steps), statistics.median(settled)
    predicted_seconds = float(plan["step_seconds"]["total"])
    return {
        "peak_memory_bytes": {"predicted": plan[key], "measured": peak, "ratio": plan[key] / peak},
        "step_seconds": {"predicted": predicted_seconds, "measured": seconds, "ratio": predicted_seconds / seconds},
    }
