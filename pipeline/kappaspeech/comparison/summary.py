"""The comparison in numbers: what report.json holds, and the table made from it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from kappaspeech.artefacts import digest_lines
from kappaspeech.comparison.equal_wer import compare_at_equal
from kappaspeech.comparison.runs import Arm, RunSummary
from kappaspeech.comparison.statistics import compare_arms, measure_arm, spread

SCHEMA_VERSION = 2


def summarise(arms: Sequence[Arm], *, missing: Mapping[str, str]) -> dict[str, Any]:
    """All arms as JSON; `difference` is an arm's WER minus the first's, null for the first itself."""
    return {
        "schema_version": SCHEMA_VERSION,
        "arms": [_summarise_arm(arm, arms[0]) for arm in arms],
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
        "num_tensors": spread([len(run.trained_names) for run in runs]),
        "num_trained_parameters": spread([run.record["num_trained_parameters"] for run in runs]),
        "num_llm_trained_parameters": spread([run.record["num_llm_trained_parameters"] for run in runs]),
        "step": runs[0].last["step"],
        "train_seconds": spread([run.last["train_seconds"] for run in runs]),
        "num_target_tokens": spread([sum(step["num_target_tokens"] for step in run.steps) for run in runs]),
        "audio_hours": spread([sum(step["audio_seconds"] for step in run.steps) / 3600 for run in runs]),
        "wer": measure_arm(arm),
        "wer_before": {lang: report["wer"] for lang, report in runs[0].first["wer"]["languages"].items()},
        "difference": None if arm is reference else compare_arms(reference, arm),
        "text": {language: _summarise_text(runs, language) for language in texts},
        "mean_drift": spread([fmean(run.drift.values()) if run.drift else 0.0 for run in runs]),
        "runs": [_summarise_run(run) for run in runs],
    }


def _summarise_text(runs: Sequence[RunSummary], language: str) -> dict[str, Any]:
    """Perplexity before and after training, and after it the KL from the base model, null where it wasn't measured."""
    kl = [run.last["text"][language].get("kl_nats") for run in runs]
    return {
        "perplexity_before": spread([run.first["text"][language]["perplexity"] for run in runs]),
        "perplexity": spread([run.last["text"][language]["perplexity"] for run in runs]),
        "kl_nats": None if None in kl else spread(kl),
    }


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
            }
            for record in run.evaluations
        ],
    }


def prove_alike(arms: Sequence[Arm]) -> list[dict[str, Any]]:
    """By seed, what its runs have in common: `group_runs` has refused runs in which it differs.

    `samples_digest` is over each step's samples and number of target tokens, in order. `first_loss_spread` is the widest
    difference of the first step's loss, before any arm has changed a weight: 0 on one number of ranks.
    """
    by_seed: dict[int, list[RunSummary]] = {}
    for arm in arms:
        for run in arm.runs:
            by_seed.setdefault(run.seed, []).append(run)
    proofs = []
    for seed, runs in sorted(by_seed.items()):
        losses = [run.steps[0]["loss_nats"] for run in runs if run.steps]
        samples = (f"{step['step']} {step['keys_digest']} {step['num_target_tokens']}" for step in runs[0].steps)
        proofs.append(
            {
                "seed": seed,
                "num_runs": len(runs),
                "initial_weights_digest": runs[0].record["initial_weights_digest"],
                "num_steps": len(runs[0].steps),
                "samples_digest": digest_lines(samples),
                "first_loss_spread": max(losses) - min(losses) if losses else 0.0,
                "world_sizes": sorted({int(run.record["world_size"]) for run in runs}),
                "git_commits": sorted({str(run.record["git_commit"]) for run in runs}),
            }
        )
    return proofs


@dataclass(frozen=True)
class Cell:
    """What a table shows, and the number by which it is sorted."""

    text: str
    value: float | str


def make_table(summary: Mapping[str, Any]) -> tuple[list[str], list[list[Cell]]]:
    """The comparison as a header and rows, one row an arm."""
    arms = summary["arms"]
    languages = list(arms[0]["wer"]["languages"])
    texts = list(arms[0]["text"])
    header = [
        "arm",
        "seeds",
        "tensors",
        "LLM parameters trained",
        "mean WER (95 %)",
        f"minus {arms[0]['arm']}, points (95 %)",
        "p",
    ]
    header += [f"WER {language}" for language in languages]
    header += [f"perplexity {language}" for language in texts]
    header += [f"KL {language}, nats" for language in texts if arms[0]["text"][language]["kl_nats"]]
    header += ["drift", "target tokens", "minutes"]
    return header, [_row(arm, languages, texts) for arm in arms]


def make_equal_table(summary: Mapping[str, Any]) -> tuple[list[str], list[list[Cell]]]:
    """Forgetting at equal levels as a header and rows, one row a level and an arm."""
    equal = summary["equal"]
    levels = [(f"{100 * level['level']:.0f} % WER", level) for level in equal["wer"]]
    levels += [(f"training loss {level['level']:.2f}", level) for level in equal["loss"]]
    first = summary["arms"][0]["arm"]
    header = ["at", "arm", "forgotten, nats a token (95 %)", f"minus {first} (95 %)", "p"]
    rows = []
    for number, (name, level) in enumerate(levels):
        for arm in level["arms"]:
            low, high = arm["interval"]
            cells = [Cell(name, number), Cell(arm["arm"], arm["arm"])]
            cells.append(Cell(f"{arm['mean']:.3f} ({low:.3f} to {high:.3f})", arm["mean"]))
            gap = arm["difference"]
            if gap is None:
                cells += [Cell("–", 0.0), Cell("–", 1.0)]
            else:
                low, high = gap["interval"]
                cells.append(Cell(f"{gap['mean']:+.3f} ({low:+.3f} to {high:+.3f})", gap["mean"]))
                cells.append(Cell(f"{gap['p_value']:.3f}", gap["p_value"]))
            rows.append(cells)
    return header, rows


def _row(arm: Mapping[str, Any], languages: Sequence[str], texts: Sequence[str]) -> list[Cell]:
    mean = arm["wer"]["mean"]
    cells = [
        Cell(arm["arm"], arm["arm"]),
        Cell(str(len(arm["seeds"])), len(arm["seeds"])),
        Cell(f"{arm['num_tensors']['mean']:.0f}", arm["num_tensors"]["mean"]),
        Cell(f"{arm['num_llm_trained_parameters']['mean'] / 1e6:.2f} M", arm["num_llm_trained_parameters"]["mean"]),
        Cell(f"{_percent(mean)} ({_range(mean['interval'])})", mean["mean"]),
    ]
    if arm["difference"] is None:
        cells += [Cell("–", 0.0), Cell("–", 1.0)]
    else:
        gap = arm["difference"]["mean"]
        low, high = (100 * bound for bound in gap["interval"])
        cells.append(Cell(f"{100 * gap['mean']:+.1f} ({low:+.1f} to {high:+.1f})", gap["mean"]))
        cells.append(Cell(f"{gap['p_value']:.3f}", gap["p_value"]))
    for language in languages:
        report = arm["wer"]["languages"][language]
        before = arm["wer_before"].get(language)
        cells.append(Cell(f"{before:.0%} → {_percent(report)}" if before is not None else _percent(report), report["mean"]))
    for language in texts:
        before, after = (arm["text"][language][key] for key in ("perplexity_before", "perplexity"))
        cells.append(Cell(f"{before['mean']:.1f} → {_number(after, '.1f')}", after["mean"]))
    kl = [arm["text"][language]["kl_nats"] for language in texts if arm["text"][language]["kl_nats"]]
    cells += [Cell(_number(values, ".3f"), values["mean"]) for values in kl]
    cells.append(Cell(_number(arm["mean_drift"], ".3f"), arm["mean_drift"]["mean"]))
    cells.append(Cell(f"{arm['num_target_tokens']['mean']:,.0f}", arm["num_target_tokens"]["mean"]))
    cells.append(Cell(_number({k: _minutes(v) for k, v in arm["train_seconds"].items()}, ".1f"), arm["train_seconds"]["mean"]))
    return cells


def _minutes(value: Any) -> Any:
    return value / 60 if isinstance(value, float | int) else value


def _number(values: Mapping[str, Any], form: str) -> str:
    return f"{values['mean']:{form}}" + (f" ± {values['sd']:{form}}" if values["sd"] is not None else "")


def _percent(values: Mapping[str, Any]) -> str:
    if values["sd"] is None:
        return f"{100 * values['mean']:.1f} %"
    return f"{100 * values['mean']:.1f} ± {100 * values['sd']:.1f} %"


def _range(bounds: Sequence[float]) -> str:
    low, high = bounds
    return f"{100 * low:.1f} to {100 * high:.1f} %"
