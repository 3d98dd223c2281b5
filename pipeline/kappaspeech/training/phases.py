"""What this rank is doing now, and how the time of a step was spent."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

# «exchange» waits for other ranks outside DeepSpeed; «rest» is what no other name fits.
Phase = Literal["data", "encoder", "forward_backward", "optimizer", "exchange", "evaluation", "checkpoint", "rest"]


@dataclass(frozen=True)
class PhaseMark:
    """Where a rank stands: its phase since `began_seconds` of the monotonic clock, the global step, and its samples' keys."""

    phase: Phase
    began_seconds: float
    step: int | None = None
    keys: tuple[str, ...] = ()


class PhaseClock:
    """A rank is in exactly one phase at any time. The training's thread enters phases; any thread may read `mark`.

    Times are the host's: what a GPU was given to do counts where the host next waits for it.
    """

    def __init__(self) -> None:
        self._seconds: dict[Phase, float] = {}
        # how many phases have begun, by which ranks can be told apart that do the same things in the same order; and signs of
        # life within phases
        self.num_turns = self.num_ticks = 0
        self.mark = PhaseMark("rest", time.monotonic())

    def enter(self, phase: Phase) -> None:
        """End the current phase and begin `phase`, of the same step."""
        self._turn(PhaseMark(phase, time.monotonic(), self.mark.step, self.mark.keys))

    def begin_step(self, step: int) -> None:
        """From now on what is done is done for global step `step`, whose samples aren't known yet."""
        self._turn(PhaseMark("rest", time.monotonic(), step))

    def name_samples(self, keys: Sequence[str]) -> None:
        """Name this rank's samples of the step; the phase goes on."""
        self.mark = PhaseMark(self.mark.phase, self.mark.began_seconds, self.mark.step, tuple(keys))

    def tick(self) -> None:
        """A long phase has made progress."""
        self.num_ticks += 1

    def end_steps(self) -> None:
        """What comes now belongs to no step."""
        self._turn(PhaseMark("rest", time.monotonic()))

    def take_seconds(self) -> dict[Phase, float]:
        """Seconds in each phase since the last call, the current one's part included; together, all of that time."""
        self.enter(self.mark.phase)
        taken, self._seconds = self._seconds, {}
        return taken

    def _turn(self, mark: PhaseMark) -> None:
        old, self.mark = self.mark, mark
        self.num_turns += 1
        self._seconds[old.phase] = self._seconds.get(old.phase, 0.0) + mark.began_seconds - old.began_seconds
