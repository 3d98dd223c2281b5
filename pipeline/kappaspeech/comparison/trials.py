"""A trial's selection and its run's YAML, made before it trains, and its state."""

from __future__ import annotations

import math
from typing import Any, Literal

import yaml

from kappaspeech.artefacts import write_private, write_text
from kappaspeech.comparison.experiment import HOLDING, LORA, ArmConfig, Experiment, ExperimentConfig, Trial, budget, has_number
from kappaspeech.comparison.runs import arm_differences, config_differences
from kappaspeech.config.model_config import LoraConfig
from kappaspeech.config.run_config import RunConfig
from kappaspeech.errors import InputError
from kappaspeech.model.llm import load_llm
from kappaspeech.model.lora import linear_tensors
from kappaspeech.redaction import find_secrets, redact_values
from kappaspeech.runs.contents import RECORD_FILE, SELECTION_FILE
from kappaspeech.runs.folder import RunFolder
from kappaspeech.scan.ranking import KappaRanking
from kappaspeech.selection.candidates import Experts, Order
from kappaspeech.selection.rules import Count, Nearest, Rule, TypeFraction
from kappaspeech.selection.select import select
from kappaspeech.selection.tensor_selection import TensorSelection

State = Literal["waiting", "running", "resumable", "failed", "finished"]


def make_trial_config(experiment: Experiment, trial: Trial, ranking: KappaRanking | None) -> RunConfig:
    """The base run with this trial's place, name, seed and length, what it unfreezes and what holds that to its beginning."""
    content = experiment.base.model_dump()
    options = _unfreeze(experiment, trial, ranking)
    content |= {"run_dir": str(trial.run_dir), "arm": trial.arm.name, "seed": trial.seed, "unfreeze": options}
    content |= {key: own.model_dump() for key in HOLDING if (own := getattr(trial.arm, key)) is not None}
    if (rate := trial.arm.llm_learning_rate) is not None:
        content["optimizer"]["llm_learning_rate"] = rate
    if (until := experiment.config.until) is not None:
        content["training"] |= {"num_steps": until.num_steps, "evaluate_every_steps": until.evaluate_every_steps}
    return RunConfig.model_validate(content)


def _unfreeze(experiment: Experiment, trial: Trial, ranking: KappaRanking | None) -> dict[str, Any]:
    selection = str(trial.selection_path) if trial.selection_path else None
    if trial.arm.select in LORA:
        return {"mode": "lora", "selection": selection, "lora": _make_lora(experiment, trial, ranking).model_dump()}
    mode = trial.arm.select if trial.arm.select in ("adaptor", "all") else "selection"
    osf = trial.arm.osf.model_dump() if trial.arm.osf is not None else None
    return {"mode": mode, "selection": selection, "osf": osf}


def _make_lora(experiment: Experiment, trial: Trial, ranking: KappaRanking | None) -> LoraConfig:
    """The arm's LoRA, of the rank that comes nearest to the budget if parameters are to be equal."""
    given = trial.arm.lora or LoraConfig()
    if budget(trial.arm, experiment.config) == "count":
        return given
    assert ranking is not None
    if trial.selection_path:
        shapes = list(make_selection(experiment, trial, ranking).shapes.values())
    else:
        llm = load_llm(experiment.base.model.llm, dtype=None)
        shapes = [tuple(llm.get_parameter(name).shape) for name in linear_tensors(llm)]
    # a pair of factors has rank · (m + n) parameters, and as many for each of fused experts
    of_rank_one = sum(math.prod(shape[:-2]) * (shape[-2] + shape[-1]) for shape in shapes)
    rank = max(1, round(_budget(experiment, ranking).num_parameters / of_rank_one))
    return given.model_copy(update={"rank": rank, "alpha": 2.0 * rank})


def make_selection(experiment: Experiment, trial: Trial, ranking: KappaRanking) -> TensorSelection:
    """The tensors that `trial` trains or adapts. Raises `SelectionError` if the ranking has too few."""
    config = experiment.config
    orders: dict[str, Order] = {"largest": "largest", "random": "random"}
    order = orders.get(trial.arm.select, "smallest")
    seed = trial.seed if trial.arm.seed is None else trial.arm.seed
    # LoRA adapts the experts of a tensor together
    experts: Experts = "together" if trial.arm.select in LORA else config.experts
    score = trial.arm.score or "kappa"
    # the budget is theirs
    is_measure = order == "smallest" and score == "kappa"
    rule: Rule
    if budget(trial.arm, config) == "count":
        rule = _number_rule(trial.arm if has_number(trial.arm) else config)
    else:
        rule = _number_rule(config) if is_measure else Nearest(_budget(experiment, ranking).num_parameters)
    exclude = [*config.exclude, *trial.arm.exclude]
    return select(ranking, rule, order=order, seed=seed, score=score, exclude=exclude, experts=experts)


def _budget(experiment: Experiment, ranking: KappaRanking) -> TensorSelection:
    """The selection whose number of parameters all arms are to have: the experiment's number of tensors of smallest κ."""
    config = experiment.config
    return select(ranking, _number_rule(config), exclude=config.exclude, experts=config.experts)


def _number_rule(numbered: ArmConfig | ExperimentConfig) -> Rule:
    if numbered.type_fraction is not None:
        return TypeFraction(numbered.type_fraction)
    # an experiment that selects without a number was refused when it was read
    assert numbered.count is not None
    return Count(numbered.count)


def prepare(experiment: Experiment) -> None:
    """Write every trial's selection and run's YAML; the same bytes each time.

    Raises `InputError` if a run folder holds a run of another configuration or selection, before anything is written.
    """
    ranking = KappaRanking.read(experiment.ranking_path) if experiment.needs_ranking else None
    prepared = []
    for trial in experiment.trials:
        config = make_trial_config(experiment, trial, ranking)
        selection = make_selection(experiment, trial, ranking) if ranking and trial.selection_path else None
        _check_same_run(trial, config, selection)
        prepared.append((trial, config, selection))
    for trial, config, selection in prepared:
        if selection and trial.selection_path:
            selection.write(trial.selection_path)
        content = config.model_dump(mode="json")
        write = write_private if find_secrets(content) else write_text
        write(trial.config_path, yaml.safe_dump(content, allow_unicode=True, sort_keys=False))


def _check_same_run(trial: Trial, config: RunConfig, selection: TensorSelection | None) -> None:
    if read_state(trial) == "waiting":
        return
    # a URL that was signed anew is the same URL
    before, now = (redact_values(c.model_dump(mode="json")) for c in (RunFolder(trial.run_dir).read_config(), config))
    # the tensors are compared by themselves: a folder that has moved keeps its selection under another path
    for content in (before, now):
        content["unfreeze"].pop("selection")
    differing = [*config_differences(before, now), *arm_differences(before, now)]
    differing += [key for key in ("seed", "unfreeze") if before[key] != now[key]]
    kept = trial.run_dir / SELECTION_FILE
    had = TensorSelection.read(kept).shapes if kept.exists() else {}
    if had != (selection.shapes if selection else {}):
        differing.append("the selected tensors")
    if differing:
        raise InputError(
            f"{trial.run_dir} holds a run of another experiment: {', '.join(differing)} differ. Give this experiment another "
            "`output`, or move the old one away."
        )


def read_state(trial: Trial) -> State:
    """A trial's state, by its run folder; it is "running" also if it was killed."""
    if not (trial.run_dir / RECORD_FILE).exists():
        return "waiting"
    state: State = RunFolder(trial.run_dir).read_record()["status"]
    return state
