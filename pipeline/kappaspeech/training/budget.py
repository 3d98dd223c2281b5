"""A forgetting budget: the anchor's weight is raised so far that the run ends at a given distance from its base."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from kappaspeech.config.run_config import RunConfig
from kappaspeech.ranks.agreement import agreement
from kappaspeech.runs.records import RunLog
from kappaspeech.training.anchor import measure_distance
from kappaspeech.training.anchor_weight import AnchorWeight
from kappaspeech.training.cadence import Cadence
from kappaspeech.training.partitioned import Partitioned
from kappaspeech.training.surroundings import Surroundings
from kappaspeech.zero3.weight_swap import averaged_weights

_NUM_MEASUREMENTS = 32


class KeepBudget(Cadence):
    """Measures the distance from the base on held-out text, and steers the anchor's weight by it."""

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
        self._budget_nats = config.replay.forgetting_budget_nats
        self._engine = partitioned.engine
        self._anchors = partitioned.measured
        self._weight = weight
        self._around = around
        self._pieces = pieces
        self._log = log

    def after(self, step: int) -> str | None:
        # the LLM doesn't move while the adaptor is aligned alone
        if step <= self._alignment_steps or (step % self._every and step != self._num_steps):
            return None
        self._around.phases.enter("evaluation")
        with averaged_weights(self._engine):
            distances = {
                language: measure_distance(self._engine, cut, self._anchors[language], around=self._around)
                for language, cut in self._pieces.items()
            }
        mean = math.fsum(distances.values()) / len(distances)
        self._weight.steer(mean)
        with agreement(self._around.cluster):
            if self._log is not None:
                self._log.add_distance(
                    {
                        "step": step,
                        "kl_nats": mean,
                        "languages": distances,
                        "budget_nats": self._budget_nats,
                        "anchor_weight": self._weight.value,
                    }
                )
        return None
