"""A forecast of a run's time, given once its first steps are timed."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping, Sequence
from typing import Any

from kappaspeech.config.training_config import TrainingConfig
from kappaspeech.progress import say_duration

# the first ones warm up
_NUM_STEPS, _NUM_WARM_UP = 10, 3
# of a step's time, for one that aligns the adaptor alone: 0.18 on the quickstart's two ranks, for a run without a plan
_ALIGNMENT_WORK = 0.2
# what a plan leaves out of such a step, as reading its data, is this part of a step at least
_LEAST_WORK = 0.01
_NUM_RECENT = 100


class Forecast:
    """Times a run's steps and evaluations. `alignment_work` is the time of a step that aligns the adaptor alone, in steps with
    the LLM.
    """

    def __init__(self, cadence: TrainingConfig, *, alignment_work: float = _ALIGNMENT_WORK) -> None:
        self._cadence = cadence
        self._alignment_work = alignment_work
        self._step_seconds: list[float] = []
        self._alignment_seconds: list[float] = []
        self._evaluation_seconds: float | None = None

    def work(self, step: int) -> float:
        """The work of the first `step` steps, in steps with the LLM."""
        aligned = min(step, self._cadence.alignment_steps)
        return self._alignment_work * aligned + step - aligned

    def time_evaluation(self, began: float) -> None:
        """Take the time of an evaluation that began at this second of the monotonic clock and has just ended."""
        self._evaluation_seconds = time.monotonic() - began

    def time_step(self, seconds: float, step: int) -> str | None:
        """A sentence for a person after `step` steps in all, of which the last took `seconds`: once, after the first ten of the
        kind that the run ends with."""
        aligns, left = step <= self._cadence.alignment_steps, self._cadence.num_steps - step
        timed = self._alignment_seconds if aligns else self._step_seconds
        timed.append(seconds)
        if (aligns and self._cadence.alignment_steps < self._cadence.num_steps) or len(timed) != _NUM_STEPS or left <= 0:
            return None
        return describe(timed[_NUM_WARM_UP:], left, self._evaluation_seconds, self._evaluations_left(step))

    def seconds_left(self, step: int) -> float | None:
        """The time to the end after `step` steps in all, by the recent ones; None before the first that count.

        Until a step with the LLM counts, those that align the adaptor alone tell of it by `alignment_work`.
        """
        if recent := self._step_seconds[_NUM_WARM_UP:][-_NUM_RECENT:]:
            typical = statistics.median(recent)
        elif aligning := self._alignment_seconds[_NUM_WARM_UP:][-_NUM_RECENT:]:
            typical = statistics.median(aligning) / self._alignment_work
        else:
            return None
        evaluations = (self._evaluation_seconds or 0.0) * self._evaluations_left(step)
        return typical * (self.work(self._cadence.num_steps) - self.work(step)) + evaluations

    def _evaluations_left(self, step: int) -> int:
        every, last = self._cadence.evaluate_every_steps, self._cadence.num_steps
        return 1 + (len(range(step // every * every + every, last, every)) if every else 0)


def read_alignment_work(plan: Mapping[str, Any]) -> float:
    """The `alignment_work` of a `Forecast`, by the plan in run.json; a typical one for a run without a plan."""
    if "error" in plan:
        return _ALIGNMENT_WORK
    return float(min(1.0, max(_LEAST_WORK, plan["alignment_seconds"] / plan["step_seconds"]["total"])))


def describe(step_seconds: Sequence[float], steps_left: int, evaluation_seconds: float | None, evaluations_left: int) -> str:
    """A sentence on the time to the end. Without a first evaluation, the time of those to come is unknown."""
    typical = statistics.median(step_seconds)
    seconds, counted = typical * steps_left, f"{steps_left} steps of {typical:.2g} s"
    if evaluation_seconds is not None:
        seconds += evaluation_seconds * evaluations_left
        counted += f" and {evaluations_left} evaluation(s) of {evaluation_seconds:.0f} s"
    return f"about {say_duration(seconds)} left: {counted}"
