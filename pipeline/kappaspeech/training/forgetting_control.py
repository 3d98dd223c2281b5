"""What keeps a forgetting budget: the anchor's weight, and the LLM's learning rate where a greater weight doesn't help."""

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
# beyond that, the logarithm of the LLM's rate falls by a quarter of the effort, to a twentieth at most
_RATE_EXPONENT, _MOST_SLOWED = 0.25, 12.0
# a greater weight may help again once the LLM is this much slower
_SLOWED_ALONE = 2.0


class ForgettingControl:
    """The anchor's weight and a factor of the LLM's learning rate: as configured, or as distances have made them.

    All ranks hold the same.
    """

    def __init__(self, options: ReplayConfig | None) -> None:
        self._least = options.anchor_weight if options else 0.0
        self._budget_nats = options.forgetting_budget_nats if options else None
        self._sum = 0.0
        # the controller's output: up to `_most_raised` it raises the weight, and from there on it lowers the rate
        self._effort = 0.0
        self._most_raised = _MOST_RAISED
        self._gain = 1.0
        self._before = 0.0
        # of what was measured since the distance went beyond the budget and began to fall: the nearest, under which effort
        self._peak = 0.0
        self._nearest: float | None = None
        self._effort_at_nearest = 0.0

    @property
    def anchor_weight(self) -> float:
        """The weight of the anchor until the next distance is measured."""
        # a run may resume without its budget, and nothing would lower the weight any more
        if self._budget_nats is None:
            return self._least
        raised = min(self._effort, self._most_raised) + max(0.0, self._slowed - _SLOWED_ALONE)
        return self._least * math.exp(min(raised, _MOST_RAISED))

    @property
    def llm_rate_factor(self) -> float:
        """The factor, 1 or less, of the LLM's scheduled learning rate."""
        return 1.0 if self._budget_nats is None else math.exp(-_RATE_EXPONENT * self._slowed)

    @property
    def _slowed(self) -> float:
        return max(0.0, self._effort - self._most_raised)

    def steer(self, distance_nats: float) -> None:
        """Hold the LLM tighter or looser after a distance was measured (Stooke 2020: control of a constraint's multiplier).

        If a greater weight brings the LLM no nearer, the weight goes back to the one that held best, and the LLM's rate is lowered:
        AdamW scales each step, so that the LLM would follow the anchor's noise, in steps as large as the rate.
        """
        assert self._budget_nats is not None
        self._find_most_raised(distance_nats)
        # the smallest distance that has a logarithm
        now = math.log(max(distance_nats, 1e-12) / self._budget_nats)
        swings = now * self._before < 0 and abs(now - self._before) > _SWING
        self._gain = self._gain * _SHRINK if swings else min(1.0, self._gain * _GROW)
        self._before = now
        error = self._gain * _clip(now, -_MOST_ERROR, _MOST_ERROR)
        most = self._most_raised + _MOST_SLOWED
        self._sum = _clip(self._sum + _INTEGRAL * error, 0.0, most)
        self._effort = _clip(self._sum + _PROPORTIONAL * error, 0.0, most)

    def _find_most_raised(self, distance_nats: float) -> None:
        """Note how near the present weight has kept the LLM, and which weight is of no use."""
        assert self._budget_nats is not None
        if self._most_raised < _MOST_RAISED:
            return
        if distance_nats <= self._budget_nats:
            self._peak, self._nearest = 0.0, None
        elif self._nearest is None and distance_nats >= self._peak:
            self._peak = distance_nats
        elif self._nearest is None or distance_nats < self._nearest:
            self._nearest, self._effort_at_nearest = distance_nats, self._effort
        elif self._effort > self._effort_at_nearest + _FUTILE:
            self._most_raised = self._effort_at_nearest
            self._sum = min(self._sum, self._most_raised)

    def to_json(self) -> dict[str, Any]:
        """The state that `restore` reads."""
        return {
            "sum": self._sum,
            "effort": self._effort,
            "most_raised": self._most_raised,
            "gain": self._gain,
            "before": self._before,
            "peak": self._peak,
            "nearest": self._nearest,
            "effort_at_nearest": self._effort_at_nearest,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from the state of `to_json`."""
        self._sum, self._gain, self._before = state["sum"], state["gain"], state["before"]
        # earlier versions raised the weight alone
        self._effort = state["effort"] if "effort" in state else state["raised"]
        self._most_raised = state.get("most_raised", _MOST_RAISED)
        self._peak, self._nearest = state.get("peak", 0.0), state.get("nearest")
        self._effort_at_nearest = state.get("effort_at_nearest", 0.0)


def _clip(value: float, least: float, most: float) -> float:
    return min(most, max(least, value))
