"""A forgetting budget: the anchor's weight is raised so far that the run ends at a given distance from its base.

If no weight keeps it there, the LLM's weights are drawn back on the straight line to the base, as WiSE-FT does after a training
(Wortsman et al. 2022).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from kappaspeech.config.run_config import RunConfig
from kappaspeech.errors import TrainingError
from kappaspeech.ranks.agreement import agreement
from kappaspeech.runs.records import MOST_BEYOND_BUDGET, RunLog
from kappaspeech.training.anchor import measure_distance
from kappaspeech.training.anchor_weight import AnchorWeight
from kappaspeech.training.cadence import Cadence
from kappaspeech.training.partitioned import Partitioned
from kappaspeech.training.surroundings import Surroundings
from kappaspeech.zero3.weight_swap import averaged_weights

_NUM_MEASUREMENTS = 32
# the LLM is drawn back to so near its budget, by so many moves at most
_NEAR_ENOUGH, _MOST_MOVES = 0.05, 8


class KeepBudget(Cadence):
    """Measures the distance from the base on held-out text, steers the anchor's weight by it, and draws the LLM back."""

    def __init__(
        self,
        config: RunConfig,
        pieces: Mapping[str, Sequence[Sequence[int]]],
        partitioned: Partitioned,
        weight: AnchorWeight,
        around: Surroundings,
        *,
        log: RunLog | None,
    ) -> None:
        """`pieces` are of held-out text, by language."""
        assert config.replay is not None
        self._num_steps, self._alignment_steps = config.training.num_steps, config.training.alignment_steps
        self._every = config.replay.measure_every_steps or max(1, self._num_steps // _NUM_MEASUREMENTS)
        assert config.replay.forgetting_budget_nats is not None
        assert partitioned.base is not None
        self._budget_nats = config.replay.forgetting_budget_nats
        self._base = partitioned.base
        self._engine = partitioned.engine
        self._anchors = partitioned.measured
        self._weight = weight
        self._around = around
        self._pieces = pieces
        self._log = log

    def after(self, step: int) -> str | None:
        is_last = step == self._num_steps
        # the LLM doesn't move while the adaptor is aligned alone
        if step <= self._alignment_steps or (step % self._every and not is_last):
            return None
        self._around.phases.enter("evaluation")
        distances = self._measure()
        moved_nats = _mean(distances)
        if not math.isfinite(moved_nats):
            raise TrainingError(
                f"After step {step} the LLM's distance from its base is {moved_nats:g}: what it computes isn't finite any more. "
                "Lower optimizer.llm_learning_rate; the same command continues from the last checkpoint."
            )
        self._weight.steer(moved_nats)
        if moved_nats > MOST_BEYOND_BUDGET * self._budget_nats and (is_last or self._weight.is_futile):
            distances = self._draw_back(distances)
        with agreement(self._around.cluster):
            if self._log is not None:
                self._log.add_distance(
                    {
                        "step": step,
                        "kl_nats": _mean(distances),
                        "moved_nats": moved_nats,
                        "languages": distances,
                        "budget_nats": self._budget_nats,
                        "anchor_weight": self._weight.value,
                    }
                )
        return None

    def _measure(self) -> dict[str, float]:
        """The distance from the base by language, in nats a token."""
        with averaged_weights(self._engine):
            return {
                language: measure_distance(self._engine, cut, self._anchors[language], around=self._around)
                for language, cut in self._pieces.items()
            }

    def _draw_back(self, distances: dict[str, float]) -> dict[str, float]:
        """Move the LLM's weights straight towards the base, to where the budget is kept; return the distances there.

        Near the base a distance grows with the square of the way. Further off it grows by another power, which two moves tell:
        the last, and the nearest on the budget's other side, so that none leads beyond where the LLM was (regula falsi).
        """
        way, distance, power = 1.0, _mean(distances), 2.0
        beyond, within = (way, distance), None
        for _ in range(_MOST_MOVES):
            share = (self._budget_nats / distance) ** (1 / power)
            self._base.draw_back(share)
            distances = self._measure()
            way, distance = way * share, _mean(distances)
            # a way that bfloat16 rounds to none leaves no distance, or one below zero by rounding
            if distance <= 0 or abs(distance / self._budget_nats - 1) < _NEAR_ENOUGH:
                break
            if distance < self._budget_nats:
                other, within = beyond, (way, distance)
            else:
                other, beyond = within or beyond, (way, distance)
            power = max(1.0, math.log(distance / other[1]) / math.log(way / other[0]))
        return distances


def _mean(distances: Mapping[str, float]) -> float:
    return math.fsum(distances.values()) / len(distances)
