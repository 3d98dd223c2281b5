"""Run folders as comparison reads them, arms of several seeds, and the refusal to compare what differs in more than the arm."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kappaspeech.artefacts import read_json
from kappaspeech.errors import InputError
from kappaspeech.evaluation.evaluate import read_hypotheses
from kappaspeech.evaluation.wer import Hypothesis
from kappaspeech.model.prefixes import LLM_PREFIX
from kappaspeech.redaction import redact_values
from kappaspeech.runs.contents import (
    DRIFT_FILE,
    EVALUATIONS_FILE,
    FROZEN_FILE,
    SELECTION_FILE,
    SKIPPED_STEPS_FILE,
    STEPS_FILE,
    hypotheses_path,
)
from kappaspeech.runs.folder import RunFolder
from kappaspeech.runs.records import is_evaluation, is_of_step, is_step, is_transcript_step, read_lines
from kappaspeech.selection.tensor_selection import SelectedTensor, TensorSelection

# What runs may differ in: name and place, seed, and which tensors they unfreeze, of which a random arm's are its seed's.
_RUN_KEYS = ("run_dir", "arm", "seed", "unfreeze")
# What arms may differ in, but not the seeds of one: what holds the tensors to their beginning, and how far a step moves them.
_ARM_KEYS = ("replay", "ewc", "classp", "optimizer.llm_learning_rate")
# These look on, and change no bit of what is trained.
_WATCHING_KEYS = ("training.loggers", "training.profile")
# Of run.json: what must be alike in all runs, whatever their seed, beside the configuration.
_SHARED_FACTS = ("checkpoint_digest", "adaptor", "dtype", "deepspeed_config", "versions")
# These follow from the machine if they are left to it, and runs of earlier versions don't say all of them.
_MACHINES_FACTS = ("attn_implementation", "encoder_dtype", "packs")


@dataclass(frozen=True)
class RunSummary:
    """A run's files: its configuration, `run.json`, step and evaluation records, last hypotheses, drift and selection."""

    path: Path
    arm: str
    seed: int
    config: dict[str, Any]
    record: dict[str, Any]
    steps: list[dict[str, Any]]
    evaluations: list[dict[str, Any]]
    hypotheses: list[Hypothesis]
    drift: dict[str, float]
    # κ before and after of each matrix that trained, if both are finite
    kappas: dict[str, tuple[float, float]]
    tensors: tuple[SelectedTensor, ...]
    # every parameter of the LLM, frozen or trained
    llm_names: tuple[str, ...]
    # bad steps, which moved no weight and have no record among the others
    skipped_steps: tuple[int, ...] = ()

    @property
    def losses(self) -> list[float]:
        """The transcripts' loss of each step that trained on them, in nats a token; none of those that aligned the adaptor."""
        return [float(step["loss_nats"]) for step in self.steps if is_transcript_step(step)]

    @property
    def loss_steps(self) -> list[int]:
        """The steps of `losses`: neither those that aligned the adaptor nor bad ones that were skipped."""
        return [int(step["step"]) for step in self.steps if is_transcript_step(step)]

    @property
    def trained_names(self) -> tuple[str, ...]:
        """The LLM's tensors that trained, or that LoRA adapted."""
        return tuple(tensor.name for tensor in self.tensors) or tuple(sorted(self.drift))

    @property
    def llm_learning_rate(self) -> float | None:
        """The peak learning rate of the LLM's tensors; None if the adaptor alone trained."""
        return float(self.config["optimizer"]["llm_learning_rate"]) if self.trained_names else None

    @property
    def first(self) -> dict[str, Any]:
        """The evaluation before training if there is one, else the earliest."""
        return self.evaluations[0]

    @property
    def last(self) -> dict[str, Any]:
        return self.evaluations[-1]


@dataclass(frozen=True)
class Arm:
    """The runs of one arm, by their seeds, ascending."""

    name: str
    runs: tuple[RunSummary, ...]

    @property
    def seeds(self) -> tuple[int, ...]:
        return tuple(run.seed for run in self.runs)

    def shared_with(self, other: Arm) -> list[tuple[RunSummary, RunSummary]]:
        """Pairs of this arm's and the other's runs of the same seed."""
        theirs = {run.seed: run for run in other.runs}
        return [(run, theirs[run.seed]) for run in self.runs if run.seed in theirs]


def read_run(path: Path) -> RunSummary:
    """Read a finished run's folder. Raises `InputError` for one that isn't, hasn't been evaluated, or is damaged."""
    try:
        return _read_run(path)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        told = f"it lacks {error}" if isinstance(error, KeyError) else str(error)
        raise InputError(f"{path} isn't what a finished training leaves: {told}. Bring its files back from a copy.") from error


def _read_run(path: Path) -> RunSummary:
    folder = RunFolder(path)
    config, record = redact_values(folder.read_config().model_dump(mode="json")), folder.read_record()
    if record["status"] != "finished":
        raise InputError(f"{path} hasn't finished (status {record['status']!r}). Let it train to its end, then compare.")
    evaluations = read_lines(path / EVALUATIONS_FILE, is_record=is_evaluation, strictly=True)
    evaluations.sort(key=lambda item: int(item["step"]))
    if not evaluations:
        raise InputError(f"{path} holds no evaluation. Name test shards in data.test and train again.")
    reached, last = record.get("step", evaluations[-1]["step"]), evaluations[-1]["step"]
    if last != reached:
        raise InputError(
            f"{path} finished at step {reached}, and its last evaluation is of step {last}: {EVALUATIONS_FILE} isn't whole. "
            "Train again, which evaluates what is missing."
        )
    _refuse_later_languages(path, evaluations)
    if evaluations[-1]["wer"]["mean_wer"] is None:
        raise InputError(
            f"{path} has no WER: none of its test sentences has a word. Name test shards that have, and train again."
        )
    selection = path / SELECTION_FILE
    tensors = TensorSelection.read(selection).tensors if selection.exists() else ()
    moved = read_json(path / DRIFT_FILE, schema_version=1)
    drift = moved["relative_frobenius"]
    kappas = {
        name: (before, moved["kappa_after"][name])
        for name, before in moved["kappa_before"].items()
        if before is not None and moved["kappa_after"][name] is not None
    }
    frozen = read_json(path / FROZEN_FILE, schema_version=1)["before"]
    llm_names = {name.removeprefix(LLM_PREFIX) for name in frozen if name.startswith(LLM_PREFIX)}
    return RunSummary(
        path,
        str(record["arm"]),
        int(config["seed"]),
        config,
        record,
        read_lines(path / STEPS_FILE, is_record=is_step, strictly=True),
        evaluations,
        read_hypotheses(hypotheses_path(folder.hypotheses, evaluations[-1]["step"])),
        drift,
        kappas,
        tensors,
        tuple(sorted({*llm_names, *drift, *(tensor.name for tensor in tensors)})),
        tuple(int(item["step"]) for item in read_lines(path / SKIPPED_STEPS_FILE, is_record=is_of_step, strictly=True)),
    )


def _refuse_later_languages(path: Path, evaluations: Sequence[Mapping[str, Any]]) -> None:
    """Raise `InputError` if the last evaluation measured a language of speech or text that an earlier one didn't."""
    last = evaluations[-1]
    for record in evaluations:
        speech = sorted(last["wer"].get("languages", {}).keys() - record["wer"].get("languages", {}).keys())
        text = sorted(last["text"].keys() - record["text"].keys())
        if missing := [*(f"no speech in {name}" for name in speech), *(f"no text in {name}" for name in text)]:
            raise InputError(
                f"{path} measured {' and '.join(missing)} at step {record['step']}, but did at step {last['step']}: data.test or "
                "data.text grew when it was continued. Train again with what the end measured, in another run_dir."
            )


def group_runs(runs: Sequence[RunSummary], *, reference: str | None = None) -> list[Arm]:
    """Arms in the order in which their first runs come, but first the one of the name `reference`. Raises `InputError` if there
    is none, or if the runs don't compare.

    All must have the same configuration, base model and software; those of one seed the same data, of whose fingerprint the seed
    is a part, the same initial weights and the same samples in the same order; and each arm a seed in common with the first.
    """
    by_name: dict[str, list[RunSummary]] = {}
    for run in runs:
        by_name.setdefault(run.arm, []).append(run)
    arms = _put_first([Arm(name, tuple(sorted(group, key=lambda run: run.seed))) for name, group in by_name.items()], reference)
    for arm in arms:
        for run, after in zip(arm.runs, arm.runs[1:], strict=False):
            if run.seed == after.seed:
                raise InputError(
                    f"{run.path} and {after.path} are both called {arm.name!r} and have seed {run.seed}. Set `arm` in each "
                    "run's YAML, or another seed."
                )
            if differing := arm_differences(run.config, after.config):
                raise InputError(
                    f"{run.path} and {after.path} are both called {arm.name!r} and differ in {', '.join(differing)}. Set `arm` "
                    "in each run's YAML."
                )
    for run in runs[1:]:
        _refuse(run, runs[0], find_differences(runs[0], run))
    for arm in arms[1:]:
        pairs = arm.shared_with(arms[0])
        if not pairs:
            raise InputError(
                f"{arm.name!r} (seed {_list(arm.seeds)}) and {arms[0].name!r} (seed {_list(arms[0].seeds)}) have no seed in "
                "common, so they saw other samples. Train them with the same seeds, or compare with another arm (--reference)."
            )
    by_seed: dict[int, RunSummary] = {}
    for run in runs:
        first = by_seed.setdefault(run.seed, run)
        _refuse(run, first, find_differences_of_seed(first, run))
    return arms


def _put_first(arms: Sequence[Arm], name: str | None) -> list[Arm]:
    if name is None:
        return list(arms)
    chosen = [arm for arm in arms if arm.name == name]
    if not chosen:
        raise InputError(f"--reference is {name!r}; the arms are {', '.join(repr(arm.name) for arm in arms)}.")
    return [*chosen, *(arm for arm in arms if arm.name != name)]


def find_differences(first: RunSummary, second: RunSummary) -> list[str]:
    """The names of all that differs between two runs, arm and seed aside."""
    facts = [key for key in _SHARED_FACTS if first.record.get(key) != second.record.get(key)]
    told = [key for key in _MACHINES_FACTS if key in first.record and key in second.record]
    facts += [key for key in told if first.record[key] != second.record[key]]
    steps = first.last["step"], second.last["step"]
    reached = [f"the step of the last evaluation, {steps[0]} and {steps[1]}"] if steps[0] != steps[1] else []
    return [*config_differences(first.config, second.config), *facts, *reached]


def find_differences_of_seed(first: RunSummary, second: RunSummary) -> list[str]:
    """The names of what differs between two runs of one seed in their start and in their samples.

    A step that one of them skipped, as its own gradient was bad, is recorded by the other alone: that is a result of the arm.
    """
    facts = ("data_fingerprint", "initial_weights_digest")
    differing = [key for key in facts if first.record.get(key) != second.record.get(key)]
    ours, theirs = ({int(record["step"]): _samples(record) for record in run.steps} for run in (first, second))
    step = next((step for step in sorted(ours.keys() & theirs.keys()) if ours[step] != theirs[step]), None)
    if step is not None:
        differing.append(f"the samples of step {step}")
    if {*ours, *first.skipped_steps} != {*theirs, *second.skipped_steps}:
        differing.append(f"the number of steps recorded, {len(ours)} and {len(theirs)}")
    return differing


def _samples(record: Mapping[str, Any]) -> tuple[Any, ...]:
    return record["keys_digest"], record["num_target_tokens"]


def _refuse(run: RunSummary, first: RunSummary, differing: Sequence[str]) -> None:
    if differing:
        raise InputError(
            f"{run.path} and {first.path} differ in more than the arm ({', '.join(differing)}), so their difference "
            "would say nothing about it. Train them alike."
        )


def _list(numbers: Sequence[int]) -> str:
    return ", ".join(map(str, numbers))


def config_differences(first: Mapping[str, Any], second: Mapping[str, Any]) -> list[str]:
    """Dotted keys at which two runs' configurations differ, those aside of the arm, the seed and what only looks on."""
    return [key for key in _differences(first, second) if not _is_of((*_RUN_KEYS, *_ARM_KEYS, *_WATCHING_KEYS), key)]


def arm_differences(first: Mapping[str, Any], second: Mapping[str, Any]) -> list[str]:
    """Dotted keys at which two runs' configurations differ and an arm's seeds may not, though arms may."""
    return [key for key in _differences(first, second) if _is_of(_ARM_KEYS, key)]


def _is_of(sections: Sequence[str], key: str) -> bool:
    return any(key == section or key.startswith(f"{section}.") for section in sections)


def _differences(first: Any, second: Any, prefix: str = "") -> list[str]:
    """Dotted keys at which two JSON values differ."""
    if isinstance(first, dict) and isinstance(second, dict):
        keys = sorted({*first, *second})
        return [key for k in keys for key in _differences(first.get(k), second.get(k), f"{prefix}.{k}" if prefix else k)]
    return [] if first == second else [prefix]
