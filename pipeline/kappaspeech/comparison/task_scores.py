"""Answers to questions in numbers: each arm's accuracy before and after training, and arms paired by question and by seed.

N questions · R resamples
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from kappaspeech.comparison.runs import Arm, RunSummary
from kappaspeech.comparison.statistics import spread
from kappaspeech.errors import InputError
from kappaspeech.evaluation.bootstrap import FloatArray, interval, resampled_rates, two_sided_p_value


def check_same_items(arms: Sequence[Arm]) -> None:
    """Raise `InputError` if two evaluations asked different questions."""
    asked: dict[str, tuple[RunSummary, str]] = {}
    for run in (run for arm in arms for run in arm.runs):
        for record in (run.first, run.last):
            for language, report in record.get("tasks", {}).items():
                first, digest = asked.setdefault(language, (run, report["items_digest"]))
                if report["items_digest"] != digest:
                    raise InputError(
                        f"{first.path} and {run.path} were asked different questions in {language}, or one of them before and "
                        "after training: the file of data.tasks has changed. Train again with one file."
                    )


def summarise_tasks(arm: Arm, reference: Arm) -> dict[str, Any]:
    """Accuracy by language as JSON: before and after training, and minus the reference's, null for itself; and the share of
    answers that differ from the base's.

    Intervals are bootstraps over questions of the mean over seeds, which are paired; p is two-sided.
    """
    languages = sorted(set.intersection(*(set(run.last.get("tasks", {})) for run in (*arm.runs, *reference.runs))))
    return {language: _summarise(arm, reference, language) for language in languages}


def _summarise(arm: Arm, reference: Arm, language: str) -> dict[str, Any]:
    last = [run.last["tasks"][language] for run in arm.runs]
    first = [run.first.get("tasks", {}).get(language) for run in arm.runs]
    of_base = [report["base"] for report in last]
    return {
        "num_items": last[0]["num_items"],
        "chance": last[0]["chance"],
        "accuracy_before": None if None in first else spread([report["accuracy"] for report in first if report]),
        "accuracy": {
            **spread([report["accuracy"] for report in last]),
            "interval": list(interval(np.mean([_resample(report) for report in last], axis=0))),
        },
        "flipped": None if None in of_base else spread([base["flipped"] for base in of_base]),
        "difference": None if arm is reference else _compare(arm, reference, language),
    }


def _compare(arm: Arm, reference: Arm, language: str) -> dict[str, Any]:
    pairs = [(ours.last["tasks"][language], theirs.last["tasks"][language]) for ours, theirs in arm.shared_with(reference)]
    # equal seeds and numbers draw the same questions
    gaps_R = np.mean([_resample(ours) - _resample(theirs) for ours, theirs in pairs], axis=0)
    values = [ours["accuracy"] - theirs["accuracy"] for ours, theirs in pairs]
    return {**spread(values), "interval": list(interval(gaps_R)), "p_value": two_sided_p_value(gaps_R)}


def _resample(report: Mapping[str, Any]) -> FloatArray:
    hits_N = np.equal(report["picked"], report["right"]).astype(np.float64)
    return resampled_rates(hits_N, np.ones_like(hits_N), seed=(0,))
