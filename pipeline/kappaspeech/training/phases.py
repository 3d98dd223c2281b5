"""The present activity of this rank, and the time of a step by activity."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

# "exchange" waits for other ranks outside DeepSpeed; "rest" is everything that no other name fits.
Phase = Literal["data", "encoder", "forward_backward", "optimizer", "exchange", "evaluation", "checkpoint", "rest"]


@dataclass(frozen=True)
class PhaseMark:
    """A rank's place in its work: its phase since `began_seconds` of the monotonic clock, global step, samples' keys."""

    phase: Phase
    began_seconds: float
    step: int | None = None
    keys: tuple[str, ...] = ()


class PhaseClock:
    """The clock of a rank's phases, one at any time. The training's thread enters phases; any thread may read `mark`.

    Times are the host's: the time of work given to a GPU counts in the phase in which the host next waits for it.
    """

    def __init__(self) -> None:
        self._seconds: dict[Phase, float] = {}
        # the number of phases begun, which distinguishes ranks that do the same things in the same order; and signs of
        # life within phases
        self.num_turns = self.num_ticks = 0
        self.mark = PhaseMark("rest", time.monotonic())

    def enter(self, phase: Phase) -> None:
        """End the current phase and begin `phase`, of the same step."""
        self._turn(PhaseMark(phase, time.monotonic(), self.mark.step, self.mark.keys))

    def begin_step(self, step: int) -> None:
        """Begin global step `step`, whose samples aren't known yet."""
        self._turn(PhaseMark("rest", time.monotonic(), step))

    def name_samples(self, keys: Sequence[str]) -> None:
        """Name this rank's samples of the step; the phase continues."""
        self.mark = PhaseMark(self.mark.phase, self.mark.began_seconds, self.mark.step, tuple(keys))

    def tick(self) -> None:
        """Record progress within a long phase."""
        self.num_ticks += 1

    def end_steps(self) -> None:
        """Leave the steps: the phases that follow belong to none."""
        self._turn(PhaseMark("rest", time.monotonic()))

    def take_seconds(self) -> dict[Phase, float]:
        """Seconds in each phase since the last call, the current one's part included; their sum is all of that time."""
        self.enter(self.mark.phase)
        taken, self._seconds = self._seconds, {}
        return taken

    def _turn(self, mark: PhaseMark) -> None:
        old, self.mark = self.mark, mark
        self.num_turns += 1
        self._seconds[old.phase] = self._seconds.get(old.phase, 0.0) + mark.began_seconds - old.began_seconds
