"""What a trial needs before it trains, its selection and its run's YAML, and how far it has come."""

from __future__ import annotations

from typing import Any, Literal

import yaml

from pipeline.artefacts import write_text
from pipeline.comparison.experiment import Experiment, Trial
from pipeline.comparison.runs import config_differences
from pipeline.config import RunConfig
from pipeline.errors import InputError
from pipeline.scan.ranking import KappaRanking
from pipeline.selection import Order, TensorSelection, select
from pipeline.training.run_folder import RunFolder

State = Literal["waiting", "running", "resumable", "failed", "finished"]


def make_trial_config(experiment: Experiment, trial: Trial) -> RunConfig:
    """The base run with this trial's place, name, seed and selection."""
    content = experiment.base.model_dump()
    content |= {"run_dir": str(trial.run_dir), "arm": trial.arm.name, "seed": trial.seed, "unfreeze": _unfreeze(trial)}
    return RunConfig.model_validate(content)


def _unfreeze(trial: Trial) -> dict[str, Any]:
    return {"selection": str(trial.selection_path) if trial.selection_path else None}


def make_selection(experiment: Experiment, trial: Trial, ranking: KappaRanking) -> TensorSelection:
    """The tensors that `trial` trains. Raises `SelectionError` where the ranking has too few."""
    count = experiment.config.count
    orders: dict[str, Order] = {"smallest": "smallest", "largest": "largest", "random": "random"}
    order = orders[trial.arm.select]
    seed = trial.seed if trial.arm.seed is None else trial.arm.seed
    if experiment.config.equal == "count" or order == "smallest":
        return select(ranking, order=order, seed=seed, count=count)
    return select(ranking, order=order, seed=seed, match=select(ranking, count=count))


def prepare(experiment: Experiment) -> None:
    """Write every trial's selection and run's YAML; the same bytes each time.

    Raises `InputError` where a run folder holds a run of another configuration or selection, before anything is written.
    """
    ranking = KappaRanking.read(experiment.ranking_path) if any(trial.selection_path for trial in experiment.trials) else None
    prepared = []
    for trial in experiment.trials:
        config = make_trial_config(experiment, trial)
        selection = make_selection(experiment, trial, ranking) if ranking and trial.selection_path else None
        _check_same_run(trial, config, selection)
        prepared.append((trial, config, selection))
    for trial, config, selection in prepared:
        if selection and trial.selection_path:
            selection.write(trial.selection_path)
        write_text(trial.config_path, yaml.safe_dump(config.model_dump(mode="json"), allow_unicode=True, sort_keys=False))


def _check_same_run(trial: Trial, config: RunConfig, selection: TensorSelection | None) -> None:
    if read_state(trial) == "waiting":
        return
    before, now = RunFolder(trial.run_dir).read_config().model_dump(mode="json"), config.model_dump(mode="json")
    # the tensors are compared by themselves: a folder that has moved keeps its selection under another path
    for content in (before, now):
        content["unfreeze"].pop("selection")
    differing = config_differences(before, now) + [key for key in ("seed", "unfreeze") if before[key] != now[key]]
    kept = trial.run_dir / "selection.json"
    had = TensorSelection.read(kept).shapes if kept.exists() else {}
    if had != (selection.shapes if selection else {}):
        differing.append("the selected tensors")
    if differing:
        raise InputError(
            f"{trial.run_dir} holds a run of another experiment: {', '.join(differing)} differ. Give this experiment another "
            "`output`, or move the old one away."
        )


def read_state(trial: Trial) -> State:
    """How far a trial has come, by its run folder: «running» also where it was killed."""
    if not (trial.run_dir / "run.json").exists():
        return "waiting"
    state: State = RunFolder(trial.run_dir).read_record()["status"]
    return state
