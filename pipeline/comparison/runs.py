"""Run folders as comparison reads them, and the refusal to compare what differs in more than the arm."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.artefacts import read_json
from pipeline.errors import InputError
from pipeline.evaluation.evaluate import read_hypotheses
from pipeline.evaluation.wer import Hypothesis
from pipeline.training.run_folder import RunFolder
from pipeline.training.run_log import read_lines

# What arms may differ in: their name and place, and which tensors they unfreeze.
_ARM_KEYS = ("run_dir", "arm", "unfreeze")
# Of run.json: what makes two runs start from the same weights and see the same samples.
_SHARED_FACTS = ("data_fingerprint", "checkpoint_digest", "adaptor", "dtype", "seed")


@dataclass(frozen=True)
class RunSummary:
    """What a run left: its configuration, `run.json`, step and evaluation records, last hypotheses and drift by tensor."""

    path: Path
    arm: str
    config: dict[str, Any]
    record: dict[str, Any]
    steps: list[dict[str, Any]]
    evaluations: list[dict[str, Any]]
    hypotheses: list[Hypothesis]
    drift: dict[str, float]
    num_selected: int

    @property
    def first(self) -> dict[str, Any]:
        """The evaluation before training where there is one, else the earliest."""
        return self.evaluations[0]

    @property
    def last(self) -> dict[str, Any]:
        return self.evaluations[-1]


def read_run(path: Path) -> RunSummary:
    """Read a finished run's folder. Raises `InputError` for one that isn't or hasn't been evaluated."""
    folder = RunFolder(path)
    config, record = folder.read_config().model_dump(mode="json"), folder.read_record()
    if record["status"] != "finished":
        raise InputError(f"{path} hasn't finished (status {record['status']!r}). Let it train to its end, then compare.")
    evaluations = sorted(read_lines(path / "evaluations.jsonl"), key=lambda item: int(item["step"]))
    if not evaluations:
        raise InputError(f"{path} holds no evaluation. Name test shards in data.test and train again.")
    hypotheses = read_hypotheses(folder.hypotheses / f"step-{evaluations[-1]['step']:06d}.jsonl")
    drift = read_json(path / "drift.json", schema_version=1)["relative_frobenius"]
    selection = path / "selection.json"
    num_selected = len(read_json(selection, schema_version=1)["tensors"]) if selection.exists() else 0
    return RunSummary(
        path, str(record["arm"]), config, record, read_lines(path / "steps.jsonl"), evaluations, hypotheses, drift, num_selected
    )


def check_comparable(runs: Sequence[RunSummary]) -> None:
    """Raise `InputError` naming what differs beside the arm, or arms of one name."""
    arms = [run.arm for run in runs]
    if len(set(arms)) != len(arms):
        raise InputError(
            f"Two runs are called {next(arm for arm in arms if arms.count(arm) > 1)!r}. Set `arm` in each run's YAML."
        )
    for run in runs[1:]:
        differing = [
            *_differences(_shared_config(runs[0]), _shared_config(run)),
            *(key for key in _SHARED_FACTS if runs[0].record[key] != run.record[key]),
        ]
        if differing:
            raise InputError(
                f"{run.path} and {runs[0].path} differ in more than the arm ({', '.join(differing)}), so their difference "
                "would say nothing about it. Train them alike, with the same seed."
            )


def _shared_config(run: RunSummary) -> dict[str, Any]:
    return {key: value for key, value in run.config.items() if key not in (*_ARM_KEYS, "schema_version")}


def _differences(first: Any, second: Any, prefix: str = "") -> list[str]:
    """Dotted keys at which two JSON values differ."""
    if isinstance(first, dict) and isinstance(second, dict):
        keys = sorted({*first, *second})
        return [key for k in keys for key in _differences(first.get(k), second.get(k), f"{prefix}.{k}" if prefix else k)]
    return [] if first == second else [prefix]
