"""The number of a recipe's steps that fit a time on this machine, measured by the steps of a short run."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from kappaspeech.errors import InputError
from kappaspeech.runs.contents import STEPS_FILE

# An evaluation took 13 to 27 steps' time on two cores, decoding and text together; more than that, for other machines.
_EVALUATION_STEPS = 30
# of the time, for what was measured on a machine that is busier later
_RESERVE = 0.1
# fewer end within the learning rate's warm-up, or just past it
_MIN_NUM_STEPS = 20
# of the recipe's steps; with fewer the model was seen not to listen yet
_LISTENING_FRACTION = 2 / 3


@dataclass(frozen=True)
class Pace:
    """Seconds that a step takes, that a run takes beside its steps and evaluations, and that measuring both has taken."""

    step_seconds: float
    start_seconds: float
    spent_seconds: float

    @classmethod
    def of(cls, seconds: Sequence[float], *, spent_seconds: float) -> Pace:
        """From each step of a run without evaluations that took `spent_seconds` as a whole; its first half warms up."""
        median = statistics.median(seconds[len(seconds) // 2 :])
        return cls(median, max(0.0, spent_seconds - sum(seconds)), spent_seconds)


def read_step_seconds(run_dir: Path) -> list[float]:
    """The seconds of each step of a run. Raises `InputError` if it has none."""
    path = run_dir / STEPS_FILE
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
        seconds = [float(json.loads(line)["seconds"]) for line in lines if line.strip()]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} doesn't say how long steps took ({error!r}); train the probe again.") from error
    if not seconds:
        raise InputError(f"{path} has no steps; train the probe again.")
    return seconds


def choose_num_steps(pace: Pace, *, minutes: float, recipe_num_steps: int, evaluate_every_steps: int) -> int:
    """The most steps, up to the recipe's, that end in time with their evaluations. Raises `InputError` if that is too few."""
    least = min(_MIN_NUM_STEPS, recipe_num_steps)
    for num_steps in range(recipe_num_steps, least - 1, -1):
        if _seconds_of(num_steps, pace, evaluate_every_steps) <= 60 * minutes:
            return num_steps
    needed = math.ceil(_seconds_of(least, pace, evaluate_every_steps) / 60)
    raise InputError(
        f"{minutes:g} minutes are too short here: a step takes {pace.step_seconds:.2g} s, and {least} steps, the fewest worth a "
        f"training, take {needed} minutes with loading and evaluations. Give --minutes {needed} or more."
    )


def _seconds_of(num_steps: int, pace: Pace, evaluate_every_steps: int) -> float:
    """The pace of all that --minutes covers: the probe, and a run that evaluates before, at each interval and at the end."""
    num_evaluations = 1 + (math.ceil(num_steps / evaluate_every_steps) if evaluate_every_steps else 1)
    run_seconds = pace.start_seconds + (num_steps + num_evaluations * _EVALUATION_STEPS) * pace.step_seconds
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
