"""Settings of a run that act on nothing, by what else it says: each is told, with a remedy, and the run goes on."""

from __future__ import annotations

from dataclasses import dataclass

from kappaspeech.config.run_config import RunConfig
from kappaspeech.config.training_config import OptimizerConfig


@dataclass(frozen=True)
class Unheeded:
    """Settings of one part of the configuration, `area`, in a sentence on what they act on in vain, without its full stop."""

    area: str
    told: str
    remedy: str


def find_unheeded(config: RunConfig) -> list[Unheeded]:
    """Settings of `config` known to act on nothing. Arms of a comparison share one base, so these are warnings and no errors."""
    found = [_by_classp(config), *_of_a_still_llm(config), _of_no_budget(config), *_without_speech(config)]
    return [item for item in found if item is not None]


def _by_classp(config: RunConfig) -> Unheeded | None:
    """The options of `optimizer` that the LLM's tensors don't get, as CLASSP moves them."""
    asked = config.optimizer.model_dump(mode="json", include={"betas", "epsilon", "weight_decay"})
    default = OptimizerConfig().model_dump(mode="json")
    changed = [f"optimizer.{name} {value}" for name, value in asked.items() if value != default[name]]
    if config.classp is None or not changed:
        return None
    told = f"{_are(changed)} AdamW's, and with classp the adaptor's alone"
    return Unheeded("optimizer", told, "Leave them out, or remove classp, if they were meant for the LLM too.")


def _of_a_still_llm(config: RunConfig) -> list[Unheeded]:
    """All that is meant for the LLM's tensors in a run that moves none of them."""
    training, mode = config.training, config.unfreeze.mode
    only_aligns = training.alignment_steps == training.num_steps
    if mode != "adaptor" and not only_aligns:
        return []
    why = f"training.alignment_steps is all of training.num_steps, {training.num_steps}"
    if mode == "adaptor":
        why = "unfreeze.mode is adaptor"
    sections = {"replay": config.replay, "ewc": config.ewc, "classp": config.classp}
    held = [name for name, section in sections.items() if section is not None]
    unfrozen = [f"unfreeze.mode {mode}"] if mode != "adaptor" else []
    found = []
    if idle := [*unfrozen, *held]:
        told = f"{_are(idle)} without effect: {why}, so no tensor of the LLM moves"
        found.append(Unheeded("unfreeze", told, "Leave out what is meant for the LLM, or train some of it."))
    if only_aligns and training.alignment_weight:
        told = (
            f"training.alignment_weight {training.alignment_weight:g} is without effect: it counts after "
            f"training.alignment_steps, and these are all of training.num_steps, {training.num_steps}"
        )
        found.append(Unheeded("alignment", told, "Set it to 0, or train for more steps."))
    return found


def _of_no_budget(config: RunConfig) -> Unheeded | None:
    replay = config.replay
    if replay is None or replay.measure_every_steps is None or replay.forgetting_budget_nats is not None:
        return None
    told = f"replay.measure_every_steps {replay.measure_every_steps} is without effect: there is no replay.forgetting_budget_nats"
    return Unheeded("replay", told, "Give a budget, or leave it out.")


def _without_speech(config: RunConfig) -> list[Unheeded]:
    """All that an evaluation would measure or begin, in a run that has none: evaluations are of data.test."""
    training = config.training
    if config.data.test:
        return []
    budgeted = config.replay is not None and config.replay.forgetting_budget_nats is not None
    texts = {"data.text": config.data.text and not budgeted, "data.tasks": config.data.tasks}
    every = {
        "training.evaluate_every_steps": training.evaluate_every_steps,
        "training.evaluate_every_minutes": training.evaluate_every_minutes,
    }
    idle = [name for name, is_set in {**texts, **every}.items() if is_set]
    if not idle:
        return []
    told = f"{_are(idle)} without effect: data.test is empty, and a run without it isn't evaluated"
    return [Unheeded("evaluation", told, "Name test shards in data.test, or measure afterwards by kappaspeech evaluate.")]


def _are(names: list[str]) -> str:
    """Names as the subject of a sentence, with its verb."""
    *others, last = names
    return f"{', '.join(others)} and {last} are" if others else f"{last} is"
