"""The number of a recipe's steps that fit a time on this machine, measured by the steps of a short run."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from kappaspeech.config.training_config import TrainingConfig
from kappaspeech.errors import InputError
from kappaspeech.runs.contents import STEPS_FILE
from kappaspeech.runs.records import is_transcript_step

# An evaluation took 13 to 27 steps' time on two cores, decoding and text together; more than that, for other machines.
_EVALUATION_STEPS = 30
# share of the time that is kept back, since the machine may be busier later than when it was measured
_RESERVE = 0.1
# with fewer steps a run would end within the learning rate's warm-up, or just past it
_MIN_NUM_STEPS = 20
# share of the recipe's steps; with fewer the model was seen not to listen yet
_LISTENING_FRACTION = 2 / 3


@dataclass(frozen=True)
class Pace:
    """Seconds that a step takes, that a run takes beside its steps and evaluations, and that measuring both has taken.

    `alignment_seconds` are those of a step that aligns the adaptor alone.
    """

    step_seconds: float
    start_seconds: float
    spent_seconds: float
    alignment_seconds: float = 0.0

    @classmethod
    def of(cls, seconds: Sequence[float], *, aligning: Sequence[float] = (), spent_seconds: float) -> Pace:
        """The pace by each step of a run without evaluations that took `spent_seconds` as a whole; each kind's first half warms
        up.
        """
        start = max(0.0, spent_seconds - sum(seconds) - sum(aligning))
        return cls(_settled(seconds), start, spent_seconds, _settled(aligning) if aligning else 0.0)


def _settled(seconds: Sequence[float]) -> float:
    return statistics.median(seconds[len(seconds) // 2 :])


def read_step_seconds(run_dir: Path) -> tuple[list[float], list[float]]:
    """The seconds of each step of a run, with the LLM and aligning the adaptor alone. Raises `InputError` if none had the LLM."""
    path = run_dir / STEPS_FILE
    try:
        records = [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line.strip()]
        seconds = [float(record["seconds"]) for record in records if is_transcript_step(record)]
        aligning = [float(record["seconds"]) for record in records if not is_transcript_step(record)]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path} doesn't say how long steps took ({error!r}); train the probe again.") from error
    if not seconds:
        raise InputError(f"{path} has no steps; train the probe again.")
    return seconds, aligning


def choose_num_steps(pace: Pace, *, minutes: float, recipe: TrainingConfig) -> int:
    """The most steps, up to the recipe's, that end in time with their evaluations. Raises `InputError` if that is too few.

    The alignment keeps its share of them.
    """
    least = min(_MIN_NUM_STEPS, recipe.num_steps)
    for num_steps in range(recipe.num_steps, least - 1, -1):
        if _seconds_of(num_steps, pace, recipe) <= 60 * minutes:
            return num_steps
    needed = math.ceil(_seconds_of(least, pace, recipe) / 60)
    raise InputError(
        f"{minutes:g} minutes are too short here: a step takes {pace.step_seconds:.2g} s, and {least} steps, the fewest worth a "
        f"training, take {needed} minutes with loading and evaluations. Give --minutes {needed} or more."
    )


def _seconds_of(num_steps: int, pace: Pace, recipe: TrainingConfig) -> float:
    """The pace of all that --minutes covers: the probe, and a run that evaluates before, at each interval and at the end."""
    every, aligning = recipe.evaluate_every_steps, num_steps * recipe.alignment_steps // recipe.num_steps
    num_evaluations = 1 + (math.ceil(num_steps / every) if every else 1)
    num_llm = num_steps - aligning + num_evaluations * _EVALUATION_STEPS
    run_seconds = pace.start_seconds + aligning * pace.alignment_seconds + num_llm * pace.step_seconds
    return pace.spent_seconds + run_seconds / (1 - _RESERVE)


def describe_choice(num_steps: int, pace: Pace, *, minutes: float, recipe_num_steps: int) -> str:
    """Say in a line or two what a person should expect of `num_steps`."""
    said = f"a step takes {pace.step_seconds:.2g} s here: "
    if num_steps == recipe_num_steps:
        return f"{said}all {recipe_num_steps} steps of the recipe fit {minutes:g} minutes"
    said += f"{num_steps} of the recipe's {recipe_num_steps} steps fit {minutes:g} minutes"
    if num_steps < _LISTENING_FRACTION * recipe_num_steps:
        return f"{said}. With so few the model may not have begun to listen: WER may stay near 100 %."
    return f"{said}. Expect a higher WER than the whole recipe's."
