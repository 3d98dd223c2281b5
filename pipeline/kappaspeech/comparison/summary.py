"""The comparison in numbers: what report.json holds, its arms side by side."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from kappaspeech.artefacts import digest_lines
from kappaspeech.comparison.equal_wer import compare_at_equal
from kappaspeech.comparison.runs import Arm, RunSummary
from kappaspeech.comparison.statistics import compare_arms, measure_arm, spread
from kappaspeech.comparison.task_scores import TASK_TYPES, summarise_tasks

SCHEMA_VERSION = 2


def summarise(arms: Sequence[Arm], *, missing: Mapping[str, str]) -> dict[str, Any]:
    """All arms as JSON; `difference` is an arm's WER minus the first's, null for the first itself."""
    summarised = [_summarise_arm(arm, arms[0]) for arm in arms]
    return {
        "schema_version": SCHEMA_VERSION,
        "arms": summarised,
        "lead": _find_lead(arms, summarised),
        "equal": compare_at_equal(arms),
        "missing": dict(missing),
        "proof": prove_alike(arms),
    }


def _summarise_arm(arm: Arm, reference: Arm) -> dict[str, Any]:
    runs = arm.runs
    texts = sorted(set.intersection(*(set(run.last["text"]) for run in runs)))
    return {
        "arm": arm.name,
        "rules": sorted({run.record["selection_rule"] for run in runs}),
        "seeds": list(arm.seeds),
        "llm_learning_rate": runs[0].llm_learning_rate,
        "num_tensors": spread([len(run.trained_names) for run in runs]),
        "num_trained_parameters": spread([run.record["num_trained_parameters"] for run in runs]),
        "num_llm_trained_parameters": spread([run.record["num_llm_trained_parameters"] for run in runs]),
        "step": runs[0].last["step"],
        "train_seconds": spread([run.last["train_seconds"] for run in runs]),
        "num_target_tokens": spread([sum(step["num_target_tokens"] for step in run.steps) for run in runs]),
        "num_skipped_steps": sum(len(run.skipped_steps) for run in runs),
        "audio_hours": spread([sum(step["audio_seconds"] for step in run.steps) / 3600 for run in runs]),
        "wer": measure_arm(arm),
        "wer_before": {language: _mean_before(runs, language) for language in runs[0].first["wer"]["languages"]},
        "difference": None if arm is reference else compare_arms(reference, arm),
        "best": _summarise_best(runs),
        "text": {language: _summarise_text(runs, language) for language in texts},
        **{key: summarise_tasks(arm, reference, key=key) for key in TASK_TYPES},
        "mean_drift": spread([fmean(run.drift.values()) if run.drift else 0.0 for run in runs]),
        "runs": [_summarise_run(run) for run in runs],
    }


def _find_lead(arms: Sequence[Arm], summarised: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """The arm of lowest mean WER, and by how much the others' is higher; null of one with which it has no seed in common.

    By the differences to the reference, which are over shared seeds: an arm of which a hard seed hasn't finished doesn't win by
    that. None for an arm alone.
    """
    if len(arms) == 1:
        return None
    gaps = [0.0 if item["difference"] is None else item["difference"]["mean"]["mean"] for item in summarised]
    best = arms[gaps.index(min(gaps))]
    over = {arm.name: compare_arms(best, arm)["mean"] if best.shared_with(arm) else None for arm in arms if arm is not best}
    return {"arm": best.name, "over": over}


def _mean_before(runs: Sequence[RunSummary], language: str) -> float | None:
    """WER before training, the mean over seeds; None if it isn't known."""
    rates = [run.first["wer"]["languages"][language]["wer"] for run in runs]
    return None if None in rates else fmean(rates)


def _summarise_text(runs: Sequence[RunSummary], language: str) -> dict[str, Any]:
    """Perplexity before and after training, and after it the KL from the base model, null if it wasn't measured."""
    kl = [run.last["text"][language].get("kl_nats") for run in runs]
    return {
        "perplexity_before": spread([run.first["text"][language]["perplexity"] for run in runs]),
        "perplexity": spread([run.last["text"][language]["perplexity"] for run in runs]),
        "kl_nats": None if None in kl else spread(kl),
    }


def _summarise_best(runs: Sequence[RunSummary]) -> dict[str, Any]:
    """Each run's evaluation of lowest mean WER, and how much higher it has risen by the end."""
    best = [min(run.evaluations, key=lambda record: _mean_wer(record)) for run in runs]
    return {
        "step": spread([record["step"] for record in best]),
        "mean_wer": spread([record["wer"]["mean_wer"] for record in best]),
        "rise": spread([_mean_wer(run.last) - _mean_wer(record) for run, record in zip(runs, best, strict=True)]),
    }


def _mean_wer(record: Mapping[str, Any]) -> float:
    """An evaluation that has none is no best one."""
    rate = record["wer"]["mean_wer"]
    return math.inf if rate is None else float(rate)


def _summarise_run(run: RunSummary) -> dict[str, Any]:
    """One run's place, and its curves: what its evaluations said."""
    return {
        "path": str(run.path),
        "seed": run.seed,
        "rule": run.record["selection_rule"],
        "evaluations": [
            {
                "step": record["step"],
                "train_seconds": record["train_seconds"],
                "mean_wer": record["wer"]["mean_wer"],
                "wer": {language: report["wer"] for language, report in record["wer"]["languages"].items()},
                "text": record["text"],
                **{key: {language: report["accuracy"] for language, report in record.get(key, {}).items()} for key in TASK_TYPES},
            }
            for record in run.evaluations
        ],
    }


def prove_alike(arms: Sequence[Arm]) -> list[dict[str, Any]]:
    """The digests that runs of a seed have in common, by seed: `group_runs` has refused runs in which it differs.

    `samples_digest` is over the samples and number of target tokens of each step that none of them skipped, in order.
    `first_loss_spread` is the widest
    difference of the first step's loss, before any arm has changed a weight: 0 on one number of ranks.
    """
    by_seed: dict[int, list[RunSummary]] = {}
    for arm in arms:
        for run in arm.runs:
            by_seed.setdefault(run.seed, []).append(run)
    proofs = []
    for seed, runs in sorted(by_seed.items()):
        skipped = {step for run in runs for step in run.skipped_steps}
        losses = [run.steps[0]["loss_nats"] for run in runs if run.steps and run.steps[0]["step"] not in skipped]
        steps = [step for step in runs[0].steps if step["step"] not in skipped]
        samples = (f"{step['step']} {step['keys_digest']} {step['num_target_tokens']}" for step in steps)
        proofs.append(
            {
                "seed": seed,
                "num_runs": len(runs),
                "initial_weights_digest": runs[0].record["initial_weights_digest"],
                "num_steps": len(steps),
                "samples_digest": digest_lines(samples),
                "first_loss_spread": max(losses) - min(losses) if losses else 0.0,
                "world_sizes": sorted({int(run.record["world_size"]) for run in runs}),
                "git_commits": sorted({str(run.record["git_commit"]) for run in runs}),
            }
        )
    return proofs
