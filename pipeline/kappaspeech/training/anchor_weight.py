"""The weight of a run's anchor, steered so that the run ends at a given distance from its base."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from kappaspeech.config.replay_config import ReplayConfig

# Gains of a PI controller in logarithms, by simulation: of the error, and of its sum.
_PROPORTIONAL, _INTEGRAL = 3.0, 0.7
# If the distance swings over the budget by more than this, gains are too large; they come back afterwards.
_SWING, _SHRINK, _GROW = 0.3, 0.7, 1.1
# an error is taken to be a factor of e at most, and the weight is raised to e¹² times the least at most
_MOST_ERROR, _MOST_RAISED = 1.0, 12.0
# a weight raised by a factor of e² that brought the distance no nearer will not
_FUTILE = 2.0


class AnchorWeight:
    """The anchor's weight: the configured one, or what measured distances have raised it to. All ranks hold the same."""

    def __init__(self, options: ReplayConfig | None) -> None:
        self._least = options.anchor_weight if options else 0.0
        self._budget_nats = options.forgetting_budget_nats if options else None
        self._sum = 0.0
        self._raised = 0.0
        self._most_raised = _MOST_RAISED
        self._gain = 1.0
        self._before = 0.0
        # of what was measured since the distance went beyond the budget and began to fall: the nearest, under which weight
        self._peak = 0.0
        self._nearest: float | None = None
        self._raised_at_nearest = 0.0

    @property
    def value(self) -> float:
        # a run may resume without its budget, and nothing would lower the weight any more
        return self._least if self._budget_nats is None else self._least * math.exp(self._raised)

    @property
    def is_futile(self) -> bool:
        """True from when a greater weight was found to bring the LLM no nearer."""
        return self._most_raised < _MOST_RAISED

    def steer(self, distance_nats: float) -> None:
        """Raise or lower the weight after a distance was measured (Stooke 2020: control of a constraint's multiplier).

        If a greater weight brings the LLM no nearer, the one that kept it nearest is the greatest from there on: of a real run
        greater ones let the LLM go further away.
        """
        assert self._budget_nats is not None
        self._find_most_raised(distance_nats)
        # the smallest distance that has a logarithm
        now = math.log(max(distance_nats, 1e-12) / self._budget_nats)
        swings = now * self._before < 0 and abs(now - self._before) > _SWING
        self._gain = self._gain * _SHRINK if swings else min(1.0, self._gain * _GROW)
        self._before = now
        error = self._gain * _clip(now, -_MOST_ERROR, _MOST_ERROR)
        self._sum = _clip(self._sum + _INTEGRAL * error, 0.0, self._most_raised)
        self._raised = _clip(self._sum + _PROPORTIONAL * error, 0.0, self._most_raised)

    def _find_most_raised(self, distance_nats: float) -> None:
        """Note how near the present weight has kept the LLM, and whether a greater one is of use."""
        assert self._budget_nats is not None
        if self.is_futile:
            return
        if distance_nats <= self._budget_nats:
            self._peak, self._nearest = 0.0, None
        elif self._nearest is None and distance_nats >= self._peak:
            self._peak = distance_nats
        elif self._nearest is None or distance_nats < self._nearest:
            self._nearest, self._raised_at_nearest = distance_nats, self._raised
        elif self._raised > self._raised_at_nearest + _FUTILE:
            self._most_raised = self._raised_at_nearest

    def to_json(self) -> dict[str, Any]:
        """The state that `restore` reads."""
        return {
            "sum": self._sum,
            "raised": self._raised,
            "gain": self._gain,
            "before": self._before,
            "peak": self._peak,
            "nearest": self._nearest,
            "raised_at_nearest": self._raised_at_nearest,
            "most_raised": self._most_raised,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from the state of `to_json`."""
        self._sum, self._raised = state["sum"], state["raised"]
        self._gain, self._before = state["gain"], state["before"]
        # earlier versions noted none
        self._peak, self._nearest = state.get("peak", 0.0), state.get("nearest")
        self._raised_at_nearest = state.get("raised_at_nearest", 0.0)
        self._most_raised = state.get("most_raised", _MOST_RAISED)


def _clip(value: float, least: float, most: float) -> float:
    return min(most, max(least, value))
