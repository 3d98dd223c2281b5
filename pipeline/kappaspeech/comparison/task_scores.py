"""Answers to tasks in numbers: each arm's accuracy before and after training, and arms paired by task and by seed.

N questions · R resamples
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from kappaspeech.comparison.runs import Arm, RunSummary
from kappaspeech.comparison.statistics import spread
from kappaspeech.errors import InputError
from kappaspeech.evaluation.bootstrap import FloatArray, interval, resampled_hits, two_sided_p_value

# what a record calls the reports on each type of task, and what is said if two runs had others
TASK_TYPES = {"tasks": "asked different questions", "instructions": "given different instructions"}


def check_same_items(arms: Sequence[Arm]) -> None:
    """Raise `InputError` if two evaluations asked different questions, or gave different instructions."""
    asked: dict[tuple[str, str], tuple[RunSummary, str]] = {}
    for run in (run for arm in arms for run in arm.runs):
        for record in (run.first, run.last):
            for key, language, report in _reports(record):
                first, digest = asked.setdefault((key, language), (run, report["items_digest"]))
                if report["items_digest"] != digest:
                    raise InputError(
                        f"{first.path} and {run.path} were {TASK_TYPES[key]} in {language}, or one of them "
                        "before and after training: the file of data.tasks has changed. Train again with one file."
                    )


def _reports(record: Mapping[str, Any]) -> Iterator[tuple[str, str, Mapping[str, Any]]]:
    for key in TASK_TYPES:
        for language, report in record.get(key, {}).items():
            yield key, language, report


def summarise_tasks(arm: Arm, reference: Arm, *, key: str = "tasks") -> dict[str, Any]:
    """Accuracy by language as JSON: before and after training, and minus the reference's, null for itself; and the share of
    answers that differ from the base's. `key` is that of `TASK_TYPES`.

    Intervals are bootstraps over tasks of the mean over seeds, which are paired; p is two-sided.
    """
    languages = sorted(set.intersection(*(set(run.last.get(key, {})) for run in (*arm.runs, *reference.runs))))
    return {language: _summarise(arm, reference, key, language) for language in languages}


def _summarise(arm: Arm, reference: Arm, key: str, language: str) -> dict[str, Any]:
    last = [run.last[key][language] for run in arm.runs]
    first = [run.first.get(key, {}).get(language) for run in arm.runs]
    of_base = [report["base"] for report in last]
    # questions can be guessed right, and instructions be followed strictly or loosely
    own = {"chance": last[0]["chance"]} if key == "tasks" else {"loose": spread([report["loose_accuracy"] for report in last])}
    return {
        "num_items": last[0]["num_items"],
        **own,
        "accuracy_before": None if None in first else spread([report["accuracy"] for report in first if report]),
        "accuracy": {
            **spread([report["accuracy"] for report in last]),
            "interval": list(interval(np.mean([_resample(report) for report in last], axis=0))),
        },
        "flipped": None if None in of_base else spread([base["flipped"] for base in of_base]),
        "difference": None if arm is reference else _compare(arm, reference, key, language),
    }


def _compare(arm: Arm, reference: Arm, key: str, language: str) -> dict[str, Any]:
    pairs = [(ours.last[key][language], theirs.last[key][language]) for ours, theirs in arm.shared_with(reference)]
    # equal seeds and numbers draw the same tasks
    gaps_R = np.mean([_resample(ours) - _resample(theirs) for ours, theirs in pairs], axis=0)
    values = [ours["accuracy"] - theirs["accuracy"] for ours, theirs in pairs]
    return {**spread(values), "interval": list(interval(gaps_R)), "p_value": two_sided_p_value(gaps_R)}


def _resample(report: Mapping[str, Any]) -> FloatArray:
    hits = report["followed"] if "followed" in report else np.equal(report["picked"], report["right"])
    return resampled_hits(np.asarray(hits, dtype=np.float64))
