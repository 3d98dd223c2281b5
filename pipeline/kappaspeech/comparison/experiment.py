"""An experiment: one run, trained several times with another part of the LLM unfrozen each time, and nothing else changed."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from kappaspeech.config.classp_config import ClasspConfig
from kappaspeech.config.ewc_config import EwcConfig
from kappaspeech.config.model_config import LoraConfig, OsfConfig
from kappaspeech.config.reading import read_yaml
from kappaspeech.config.replay_config import ReplayConfig
from kappaspeech.config.run_config import RunConfig, read_run_config
from kappaspeech.config.section import Count, Positive
from kappaspeech.errors import ConfigError
from kappaspeech.scan.scores import SCORES
from kappaspeech.selection.candidates import Experts

Select = Literal["smallest", "largest", "random", "adaptor", "lora", "kappa-lora", "all"]
# those that take tensors from the ranking, and those that put LoRA on them
RANKED: tuple[Select, ...] = ("smallest", "largest", "random", "kappa-lora")
LORA: tuple[Select, ...] = ("lora", "kappa-lora")
# those that a score puts in order
ORDERED: tuple[Select, ...] = ("smallest", "largest", "kappa-lora")
# sections of a run of which an arm may have its own
HOLDING = ("replay", "ewc", "classp")
Equal = Literal["count", "parameters"]
Share = Annotated[float, Field(gt=0.0, le=1.0)]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class ArmConfig(_Section):
    """One arm: which tensors of the LLM train, and what it is called in the report."""

    name: Annotated[str, Field(min_length=1)] = Field(
        description="The arm's name in the report, and in the names of its folders."
    )
    select: Select = Field(
        description="smallest, largest: tensors by κ. random: tensors at random. lora: LoRA on every linear module. kappa-lora: "
        "LoRA on the modules of smallest κ. adaptor: nothing of the LLM. all: the whole LLM."
    )
    seed: int | None = Field(
        default=None, description="Of random alone: what fixes its tensors. null: each training seed draws anew."
    )
    lora: LoraConfig | None = Field(default=None, description="LoRA's settings, of lora and kappa-lora alone.")
    score: str | None = Field(
        default=None, description="The score that orders its tensors, as `select --score` names them. null: kappa."
    )
    equal: Equal | None = Field(default=None, description="This arm's budget, in place of the experiment's `equal`.")
    count: Count | None = Field(default=None, description="This arm's number of tensors, in place of the experiment's `count`.")
    type_fraction: Share | None = Field(
        default=None, description="This arm's share of the tensors of each module type, in place of the experiment's number."
    )
    exclude: list[str] = Field(
        default=[], description="Names or globs of tensors that this arm doesn't select, beside the experiment's `exclude`."
    )
    replay: ReplayConfig | None = Field(default=None, description="The text that this arm repeats. null: the base's.")
    ewc: EwcConfig | None = Field(default=None, description="What holds this arm's weights. null: the base's.")
    classp: ClasspConfig | None = Field(default=None, description="This arm's CLASSP. null: the base's.")
    llm_learning_rate: Positive | None = Field(
        default=None, description="This arm's `optimizer.llm_learning_rate`, also of LoRA's factors. null: the base's."
    )
    osf: OsfConfig | None = Field(
        default=None, description="The subspace that smallest, largest or random trains its tensors in. null: all of them."
    )


class UntilConfig(_Section):
    """The length of every arm, in place of the base's, and the number of measurements on its way."""

    num_steps: Count = Field(description="Steps of each arm: past the best of all, so that the curves show where they turn.")
    num_evaluations: Count = Field(default=40, description="Evaluations of each, evenly over its steps, beside the first.")

    @property
    def evaluate_every_steps(self) -> int:
        return max(1, self.num_steps // self.num_evaluations)


class ExperimentConfig(_Section):
    """Several trainings of one run, which differ in what they unfreeze. Paths count from the working folder."""

    base: str = Field(
        description="The run's YAML that every arm repeats, looked for beside this file. Its `run_dir`, `arm`, `seed` and "
        "`unfreeze` are set by the experiment, and whatever an arm or `until` says."
    )
    output: str = Field(description="Folder of everything that the experiment writes.")
    arms: Annotated[list[ArmConfig], Field(min_length=1)] = Field(description="The arms. Differences are against the first.")
    ranking: str | None = Field(default=None, description="The scan's result. null: it is made in `output` if an arm needs it.")
    count: Count | None = Field(default=None, description="Number of tensors of an arm that selects by the ranking.")
    type_fraction: Share | None = Field(
        default=None,
        description="In place of `count`: the share of the tensors of each module type, one of each at least. smallest and "
        "largest then differ in no type's number. Exclude types of a single tensor, which would be in both.",
    )
    until: UntilConfig | None = Field(default=None, description="The length of every arm. null: the base's.")
    equal: Equal = Field(
        default="count",
        description="count: each arm has `count` tensors, or its `type_fraction`. parameters: each arm comes as near as it can "
        "to the parameters of so many tensors of smallest κ, in tensors or in LoRA's rank, of which alpha is then twice.",
    )
    exclude: list[str] = Field(default=[], description="Names or globs of tensors that no arm selects.")
    experts: Experts = Field(
        default="each",
        description="What an arm selects of fused experts. each: single ones, by their own score. together: all of a tensor, by "
        "their mean, which LoRA's arms always do.",
    )
    seeds: list[int] = Field(default=[], description="Seeds that repeat each arm. []: the base's own seed.")
    num_ranks: Count = Field(default=1, description="Ranks that train an arm.")


@dataclass(frozen=True)
class Trial:
    """One arm with one training seed: a run. `number` counts from 0 through all arms of the first seed, then the next."""

    number: int
    arm: ArmConfig
    seed: int
    name: str
    folder: Path

    @property
    def run_dir(self) -> Path:
        return self.folder / "runs" / self.name

    @property
    def config_path(self) -> Path:
        return self.folder / "configs" / f"{self.name}.yaml"

    @property
    def log_path(self) -> Path:
        return self.folder / "logs" / f"{self.name}.log"

    @property
    def selection_path(self) -> Path | None:
        """The path of this trial's selection; None if it selects nothing."""
        return self.folder / "selections" / f"{self.name}.json" if self.arm.select in RANKED else None


@dataclass(frozen=True)
class Experiment:
    """An experiment's file, the run it repeats, and every trial in the order of their numbers."""

    config: ExperimentConfig
    base: RunConfig
    trials: tuple[Trial, ...]

    @property
    def output(self) -> Path:
        return Path(self.config.output)

    @property
    def needs_ranking(self) -> bool:
        return any(needs_ranking(arm, self.config) for arm in self.config.arms)

    @property
    def ranking_path(self) -> Path:
        return Path(self.config.ranking) if self.config.ranking else self.output / "ranking.json"


def read_experiment(path: Path) -> Experiment:
    """Read an experiment's YAML and the run it is based on. Raises `ConfigError` with what is wrong in either."""
    config = read_yaml(path, ExperimentConfig)
    base = read_run_config(path.parent / config.base)
    problems = _problems(config, base)
    if problems:
        raise ConfigError(f"{path} has {len(problems)} problem(s):\n" + "\n".join(f"  - {problem}" for problem in problems))
    seeds = config.seeds or [base.seed]
    pairs = [(seed, arm) for seed in seeds for arm in config.arms]
    folder = Path(config.output)
    trials = (Trial(i, arm, seed, f"{slug(arm.name)}-seed{seed}", folder) for i, (seed, arm) in enumerate(pairs))
    return Experiment(config, base, tuple(trials))


def _problems(config: ExperimentConfig, base: RunConfig) -> list[str]:
    problems = []
    slugs = [slug(arm.name) for arm in config.arms]
    for index, arm in enumerate(config.arms):
        if not slugs[index]:
            problems.append(f"arms.{index}.name: {arm.name!r} has no letter or digit to name a folder by.")
        elif slugs[index] in slugs[:index]:
            problems.append(f"arms.{index}.name: {arm.name!r} would share the folder {slugs[index]!r} with another arm.")
        if arm.seed is not None and arm.select != "random":
            problems.append(f"arms.{index}.seed: only a random selection has one; training seeds are `seeds`.")
        if arm.lora is not None and arm.select not in LORA:
            problems.append(f"arms.{index}.lora: only the arms {' and '.join(LORA)} have it.")
        if arm.lora is not None and budget(arm, config) == "parameters" and arm.lora.model_fields_set & {"rank", "alpha"}:
            problems.append(f"arms.{index}.lora: rank and alpha follow from equal: parameters. Remove them.")
    problems += [*_misplaced(config), *_badly_held(config, base)]
    if config.until is not None and config.until.num_steps <= base.training.alignment_steps:
        problems.append(f"until.num_steps: {config.until.num_steps} isn't more than the base's training.alignment_steps.")
    counted = (arm for arm in config.arms if not has_number(arm))
    if not has_number(config) and any(needs_ranking(arm, config) for arm in counted):
        problems.append("count: missing; it says how many tensors an arm selects. `type_fraction` says it too.")
    if config.count is not None and config.type_fraction is not None:
        problems.append("type_fraction: it stands in place of count. Remove one of them.")
    if len(set(config.seeds)) != len(config.seeds):
        problems.append(f"seeds: {config.seeds} names one twice.")
    if not base.data.test:
        problems.append(f"base: {config.base} tests on nothing (data.test), so there would be nothing to compare.")
    return problems


def _misplaced(config: ExperimentConfig) -> list[str]:
    """The problems of arms that have what their `select` can't have."""
    problems = []
    for index, arm in enumerate(config.arms):
        if arm.score is not None and arm.select not in ORDERED:
            problems.append(f"arms.{index}.score: only the arms {', '.join(ORDERED)} have one.")
        elif arm.score is not None and arm.score not in SCORES:
            problems.append(f"arms.{index}.score: there is no {arm.score!r}. There are {', '.join(SCORES)}.")
        if arm.equal is not None and arm.select in ("adaptor", "all"):
            problems.append(f"arms.{index}.equal: {arm.select} has no budget.")
        if arm.select not in RANKED or budget(arm, config) == "parameters":
            given = [key for key in ("count", "type_fraction") if getattr(arm, key) is not None]
            problems += [f"arms.{index}.{key}: only arms that select a number of tensors have one." for key in given]
        if arm.count is not None and arm.type_fraction is not None:
            problems.append(f"arms.{index}.type_fraction: it stands in place of count. Remove one of them.")
        if arm.exclude and arm.select not in RANKED:
            problems.append(f"arms.{index}.exclude: {arm.select} selects by no ranking.")
        if arm.osf is not None and (arm.select not in RANKED or arm.select in LORA):
            problems.append(f"arms.{index}.osf: only the arms smallest, largest and random have it.")
    return problems


def _badly_held(config: ExperimentConfig, base: RunConfig) -> list[str]:
    """The problems of arms that are held by what can't hold them. A base's section may be without effect on an arm of the
    adaptor alone: it is for the others."""
    problems = []
    for index, arm in enumerate(config.arms):
        own = [key for key in (*HOLDING, "llm_learning_rate") if getattr(arm, key) is not None]
        if arm.select == "adaptor":
            problems += [f"arms.{index}.{key}: adaptor trains nothing of the LLM that this could act on." for key in own]
        if arm.select in LORA and (arm.ewc or base.ewc) is not None:
            whose = f"arms.{index}.ewc:" if arm.ewc is not None else f"arms.{index}.select: the base's"
            problems.append(f"{whose} ewc can't hold LoRA, whose factor A has no Fisher information at the start.")
        if arm.replay is not None and arm.replay.forgetting_budget_nats is not None and not base.data.text:
            problems.append(f"arms.{index}.replay.forgetting_budget_nats: a distance on the base's data.text, which is empty.")
    return problems


def budget(arm: ArmConfig, config: ExperimentConfig) -> Equal:
    """The measure in which an arm's budget equals the others'."""
    return arm.equal or config.equal


def has_number(numbered: ArmConfig | ExperimentConfig) -> bool:
    """True if it says how many tensors an arm selects."""
    return numbered.count is not None or numbered.type_fraction is not None


def needs_ranking(arm: ArmConfig, config: ExperimentConfig) -> bool:
    """True if the ranking decides what an arm trains: its tensors, or their number of parameters."""
    return arm.select in RANKED or (arm.select in LORA and budget(arm, config) == "parameters")


def slug(name: str) -> str:
    """An arm's name as a folder's: "smallest κ" is smallest-kappa."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower().replace("κ", "kappa")).strip("-")
