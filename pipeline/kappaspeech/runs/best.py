"""The best checkpoint by WER: `best.json` beside the checkpoints, or the evaluations if that is damaged."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from kappaspeech.artefacts import read_json, write_json
from kappaspeech.errors import InputError
from kappaspeech.escaping import make_logger
from kappaspeech.runs.contents import EVALUATIONS_FILE, checkpoint_path
from kappaspeech.runs.records import is_evaluation, read_lines

BEST_FILE = "best.json"
_SCHEMA_VERSION = 1
_log = make_logger(__name__)


def mark_best(folder: Path, *, step: int, mean_wer: float) -> None:
    """Mark the checkpoint of `step` as that of the lowest WER so far, so that it is kept."""
    write_json(folder / BEST_FILE, {"schema_version": _SCHEMA_VERSION, "step": step, "mean_wer": mean_wer})


def read_best(folder: Path) -> Path | None:
    """The checkpoint that is marked as the best; None if none is, or if it is gone."""
    found = _find(folder)
    return None if found is None else checkpoint_path(folder, found[0])


def best_wer(folder: Path) -> float:
    """The WER of the best checkpoint, infinite if there is none."""
    found = _find(folder)
    return math.inf if found is None else found[1]


def repair_best(folder: Path) -> None:
    """Set a damaged `best.json` aside, with a warning, and write one from the evaluations in its place."""
    path = folder / BEST_FILE
    try:
        _read(path)
    except InputError as error:
        found = _find(folder)
        path.replace(folder / f"damaged-{BEST_FILE}")
        if found is not None:
            mark_best(folder, step=found[0], mean_wer=found[1])
        now = f"step {found[0]}, by the evaluations" if found else "none"
        _log.warning("%s Set aside as damaged-%s; the best checkpoint is %s.", error, BEST_FILE, now)


def _find(folder: Path) -> tuple[int, float] | None:
    """Step and WER of the best checkpoint that is there."""
    try:
        marked = _read(folder / BEST_FILE)
    except InputError:
        marked = _find_by_evaluations(folder)
    return marked if marked is not None and checkpoint_path(folder, marked[0]).is_dir() else None


def _read(path: Path) -> tuple[int, float] | None:
    if not path.exists():
        return None
    content: Any = read_json(path, schema_version=_SCHEMA_VERSION)
    step, mean_wer = content.get("step"), content.get("mean_wer")
    if type(step) is not int or not isinstance(mean_wer, int | float) or not math.isfinite(mean_wer):
        raise InputError(f"{path} names no step and WER.")
    return step, float(mean_wer)


def _find_by_evaluations(folder: Path) -> tuple[int, float] | None:
    records = read_lines(folder.parent / EVALUATIONS_FILE, is_record=is_evaluation)
    known = [(record["wer"]["mean_wer"], record["step"]) for record in records if record["wer"]["mean_wer"] is not None]
    there = [(wer, step) for wer, step in known if checkpoint_path(folder, step).is_dir()]
    return (min(there)[1], min(there)[0]) if there else None
