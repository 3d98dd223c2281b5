"""Records of a run for people and programs: step and evaluation records as JSON lines, and their curves in loggers."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, TextIO

from kappaspeech.escaping import make_logger
from kappaspeech.json_lines import Record, dump_line, keep_lines, read_last_line, read_lines
from kappaspeech.loggers.curves import Kind
from kappaspeech.loggers.values import distance_values, evaluation_values, step_values
from kappaspeech.runs.contents import BAD_SAMPLES_FILE, DISTANCES_FILE, EVALUATIONS_FILE, SKIPPED_STEPS_FILE, STEPS_FILE
from kappaspeech.runs.shown_run import show_curves

if TYPE_CHECKING:
    from kappaspeech.config.run_config import RunConfig
    from kappaspeech.speech.loading import BadSample

__all__ = [
    "MOST_BEYOND_BUDGET",
    "RunLog",
    "StepRecord",
    "is_distance",
    "is_evaluation",
    "is_step",
    "is_transcript_step",
    "read_lines",
]

Objective = Literal["alignment", "transcript"]
# a distance from the base up to so many budgets keeps the budget: it is drawn back from beyond
MOST_BEYOND_BUDGET = 1.1
_log = make_logger(__name__)


@dataclass(frozen=True)
class StepRecord:
    """One optimizer step, over all ranks. Losses are in nats per target token, rates and norms as they were used.

    `objective` is the loss that the step minimised and recorded: the transcript's, or the adaptor's alignment alone.

    `seconds` is the step's wall time on rank 0, and `phase_seconds` its parts by the phases of `phases.py`. `tokens_per_second`
    counts prompt, audio and labels of the LLM. `mfu` is the model FLOPs utilisation: the operations that the samples need without
    padding (`model/flops.py`) over the most that the devices can do, `matmul_flops_per_second` of run.json. `wait_seconds` is the
    longest wait of any rank for data. `padding` is the share of the encoder's frames that were padding, `llm_padding` that of the
    LLM's audio positions and labels; `hours_seen` counts usable audio since the run began, by language, and `hours_by_dataset` by
    data set, if there are several. `keys_digest` identifies the samples and their order. `replay_nats` is the mean −log p of the
    `num_replayed_tokens` of replayed text, and `anchor_nats` their mean KL(base ‖ now), both without their weights; None if there
    are none.
    """

    step: int
    loss_nats: float
    loss_sum_nats: float
    num_target_tokens: int
    learning_rates: dict[str, float]
    grad_norm: float
    seconds: float
    audio_seconds: float
    audio_seconds_per_second: float
    tokens_per_second: float
    mfu: float
    phase_seconds: dict[str, float]
    wait_seconds: float
    padding: float
    llm_padding: float
    hours_seen: dict[str, float]
    bad_samples: dict[str, int]
    peak_memory_bytes: int
    keys_digest: str
    objective: Objective = "transcript"
    num_replayed_tokens: int = 0
    replay_nats: float | None = None
    anchor_nats: float | None = None
    hours_by_dataset: dict[str, float] = field(default_factory=dict)


class RunLog:
    """Appends to `steps.jsonl` and `evaluations.jsonl` of a run folder. For rank 0 alone; a context manager."""

    def __init__(
        self, run_dir: Path, *, resume_step: int, check: Callable[[], None] = lambda: None, config: RunConfig | None = None
    ) -> None:
        """Open the log to continue at `resume_step`: records of later steps, from a run that was cut, are dropped.

        `check` is called before each write, and raises if the folder is another start's by now. `config` names the loggers, which
        show the records' curves: TensorBoard without one.
        """
        self._run_dir = run_dir
        self._check = check
        run_dir.mkdir(parents=True, exist_ok=True)
        told = {kind: _last_step(run_dir / name, is_record) for kind, (name, is_record) in _SHOWN.items()}
        # steps before the resume point happened; an evaluation *at* it belongs to the checkpoint
        for name, is_record in ((STEPS_FILE, is_step), (BAD_SAMPLES_FILE, is_of_step), (SKIPPED_STEPS_FILE, is_of_step)):
            keep_lines(run_dir / name, lambda record: record["step"] < resume_step, is_record=is_record)
        for name, is_record in ((EVALUATIONS_FILE, is_evaluation), (DISTANCES_FILE, is_distance)):
            keep_lines(run_dir / name, lambda record: record["step"] <= resume_step, is_record=is_record)
        self._steps = _open_to_append(run_dir / STEPS_FILE)
        self._curves = show_curves(run_dir, config, resume_step=resume_step, told=told)
        self._is_hurried = False
        self._show_again(resume_step)

    def __enter__(self) -> RunLog:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close(failed=error is not None)

    def _show_again(self, resume_step: int) -> None:
        """Show what was measured at the resume point, which stays in the records: TensorBoard hides all from there on."""
        for record in read_lines(self._run_dir / DISTANCES_FILE, is_record=is_distance):
            if record["step"] == resume_step and "anchor_weight" in record:
                self._curves.add("distance", resume_step, distance_values(record))
        for record in read_lines(self._run_dir / EVALUATIONS_FILE, is_record=is_evaluation):
            if record["step"] == resume_step:
                self._curves.add("evaluation", resume_step, evaluation_values(record))

    def evaluated_steps(self) -> set[int]:
        """Steps that have an evaluation."""
        return {int(record["step"]) for record in read_lines(self._run_dir / EVALUATIONS_FILE, is_record=is_evaluation)}

    def add_step(self, record: StepRecord) -> None:
        """Append a step; it survives a kill of this process, though not of the machine."""
        self._check()
        self._steps.write(dump_line(asdict(record)))
        self._steps.flush()
        self._curves.add("step", record.step, step_values(asdict(record)))

    def add_bad_samples(self, step: int, samples: Sequence[BadSample]) -> None:
        """Record the names of samples that were masked in a step."""
        if not samples:
            return
        self._check()
        with _open_to_append(self._run_dir / BAD_SAMPLES_FILE) as file:
            for sample in samples:
                file.write(dump_line({"step": step, **asdict(sample)}))

    def add_skipped_step(self, record: dict[str, Any]) -> None:
        """Record the names of the samples of a step that moved no weight; it has no other record."""
        self._check()
        with _open_to_append(self._run_dir / SKIPPED_STEPS_FILE) as file:
            file.write(dump_line(record))

    def add_distance(self, record: dict[str, Any]) -> None:
        """Append a distance from the base that was measured to keep a budget."""
        self._check()
        with _open_to_append(self._run_dir / DISTANCES_FILE) as file:
            file.write(dump_line(record))
        self._curves.add("distance", record["step"], distance_values(record))

    def add_evaluation(self, record: dict[str, Any]) -> None:
        """Append an evaluation, durably; one of the same step takes the old one's place."""
        self._check()
        path = self._run_dir / EVALUATIONS_FILE
        self._compare_normalisers(read_last_line(path, is_record=is_evaluation), record)
        keep_lines(path, lambda other: other["step"] != record["step"], is_record=is_evaluation)
        with _open_to_append(path) as file:
            file.write(dump_line(record))
            file.flush()
            os.fsync(file.fileno())
        self._curves.add("evaluation", record["step"], evaluation_values(record))
        self._curves.flush()

    def _compare_normalisers(self, before: Record | None, record: Record) -> None:
        """Warn of languages that another version of this package, by which the run was begun, compared otherwise."""
        languages = record["wer"].get("languages", {})
        earlier = before["wer"].get("languages", {}) if before is not None else {}
        for language in sorted(earlier.keys() & languages.keys()):
            was, now = (report[language].get("normaliser") for report in (earlier, languages))
            if before is not None and was is not None and was != now:
                _log.warning(
                    "WER of %s is by the normaliser %s from step %s on, and was by %s at step %s: the two can't be compared, nor "
                    "the best checkpoint chosen between them. Measure an earlier one by `kappaspeech evaluate %s --step %s`.",
                    *(language, now, record["step"], was, before["step"], self._run_dir, before["step"]),
                )

    def hurry(self) -> None:
        """Don't let loggers take long at the end: whoever asked the run to stop may kill it soon."""
        self._is_hurried = True

    def close(self, *, failed: bool = False) -> None:
        """Close the files, and the loggers, which are told whether the run has `failed`."""
        self._steps.close()
        self._curves.close(failed=failed, hurried=self._is_hurried)


def _open_to_append(path: Path) -> TextIO:
    # half of a surrogate pair is no text; JSON has an escape for it
    return path.open("a", encoding="utf-8", errors="backslashreplace", newline="\n")


def is_of_step(record: Record) -> bool:
    """Return whether a record names its step."""
    return type(record.get("step")) is int


def is_step(record: Record) -> bool:
    """Return whether a record is of a step, with the fields that every step's has."""
    return is_of_step(record) and all(isinstance(record.get(name), float | int) for name in ("loss_nats", "seconds"))


def is_distance(record: Record) -> bool:
    """Return whether a record is of a distance from the base."""
    return is_of_step(record) and all(isinstance(record.get(name), float | int) for name in ("kl_nats", "budget_nats"))


def is_transcript_step(record: Record) -> bool:
    """Return whether a record is of a step on the transcripts: all that don't say that they aligned the adaptor alone."""
    return is_step(record) and record.get("objective", "transcript") == "transcript"


def is_evaluation(record: Record) -> bool:
    """Return whether a record is of an evaluation."""
    rates = record.get("wer")
    if not is_of_step(record) or not isinstance(rates, dict) or not isinstance(record.get("text"), dict):
        return False
    if not all(_are_reports(record.get(name, {}), lists) for name, lists in _ANSWER_LISTS.items()):
        return False
    # of several test sets
    sets = rates.get("sets", {})
    if not isinstance(sets, dict) or not all(isinstance(of_set, dict) for of_set in sets.values()):
        return False
    return all("mean_wer" in part and isinstance(part["mean_wer"], float | int | None) for part in (rates, *sets.values()))


# what a record says of questions and of instructions, with the lists by which two models are compared in pairs
_ANSWER_LISTS = {"tasks": ("picked", "right"), "instructions": ("followed",)}


def _are_reports(reports: Any, lists: Sequence[str]) -> bool:
    """Return whether what a record says of tasks can be shown; most say nothing."""
    if not isinstance(reports, dict):
        return False
    return all(isinstance(report, dict) and _is_report(report, lists) for report in reports.values())


def _is_report(report: Record, lists: Sequence[str]) -> bool:
    base = report.get("base", "")
    if not (isinstance(base, dict | None) and all(isinstance(report.get(name), list) for name in lists)):
        return False
    numbers = [
        report.get(name) for name in ("accuracy", "num_items", *(("chance",) if "right" in lists else ("loose_accuracy",)))
    ]
    numbers += [] if base is None else [base.get(name) for name in ("accuracy", "flipped")]
    return isinstance(report.get("items_digest"), str) and all(isinstance(number, float | int) for number in numbers)


# what loggers show
_SHOWN: dict[Kind, tuple[str, Callable[[Record], bool]]] = {
    "step": (STEPS_FILE, is_step),
    "evaluation": (EVALUATIONS_FILE, is_evaluation),
    "distance": (DISTANCES_FILE, is_distance),
}


def _last_step(path: Path, is_record: Callable[[Record], bool]) -> int:
    last = read_last_line(path, is_record=is_record)
    return int(last["step"]) if last is not None else -1
