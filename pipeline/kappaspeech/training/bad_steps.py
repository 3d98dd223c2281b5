"""Bad steps: a loss or a gradient that isn't finite, or one that is out of all proportion."""

from __future__ import annotations

import math
import statistics
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from kappaspeech.config.training_config import TrainingConfig
from kappaspeech.zero3.engine import StepResult
from kappaspeech.zero3.trained_states import Updates

# A new norm is compared with the median of this many good steps' norms, once there are enough of them.
_WINDOW_STEPS = 50
_FEWEST_STEPS = 20
_NUM_NAMED = 5


@dataclass(frozen=True)
class BadStep:
    """A line of skipped_steps.jsonl, in which null is a number that isn't finite; and why the run can't continue, if it can't."""

    record: dict[str, Any]
    why_stop: str | None


class BadSteps:
    """The rule, and its memory. All ranks hold the same, since they are given the same values."""

    def __init__(self, config: TrainingConfig) -> None:
        self._config = config
        self._norms: deque[float] = deque(maxlen=_WINDOW_STEPS)
        # whether the norms are of steps that aligned the adaptor alone
        self._is_of_alignment = config.alignment_steps > 0
        self._num_in_a_row = 0
        self.num_skipped = 0
        # good steps that aligned the adaptor alone: counted, since a run may resume with other training.alignment_steps
        self._num_aligning = 0

    def num_updates(self, num_steps: int) -> Updates:
        """The updates that the first `num_steps` steps, which are those so far, have made."""
        num_good = num_steps - self.num_skipped
        return Updates(adaptor=num_good, llm=num_good - self._num_aligning)

    def begin(self, step: int) -> None:
        """Forget the norms before a step with another loss than theirs, which they say nothing of."""
        is_of_alignment = step < self._config.alignment_steps
        if is_of_alignment != self._is_of_alignment:
            self._norms.clear()
        self._is_of_alignment = is_of_alignment

    @property
    def norm_limit(self) -> float:
        """The largest gradient norm that the next step may have."""
        if self._config.explode_factor is None or len(self._norms) < _FEWEST_STEPS:
            return math.inf
        return self._config.explode_factor * statistics.median(self._norms)

    def judge(self, step: int, result: StepResult, *, loss_sum_nats: float, keys: Sequence[str]) -> BadStep | None:
        """None for a good step. `loss_sum_nats` and `keys` are those of all ranks."""
        limit = self.norm_limit
        is_good = result.is_applied and math.isfinite(loss_sum_nats)
        if is_good:
            self._norms.append(result.grad_norm)
            self._num_aligning += step < self._config.alignment_steps
        if is_good:
            self._num_in_a_row = 0
            return None
        self.num_skipped += 1
        self._num_in_a_row += 1
        numbers = {"loss_sum_nats": loss_sum_nats, "grad_norm": result.grad_norm, "norm_limit": limit}
        finite = {name: value if math.isfinite(value) else None for name, value in numbers.items()}
        return BadStep({"step": step, **finite, "keys": sorted(keys)}, self._why_stop(step, result, numbers, sorted(keys)))

    def _why_stop(self, step: int, result: StepResult, numbers: Mapping[str, float], keys: Sequence[str]) -> str | None:
        if result.is_applied:
            cause = "its gradient is finite, so that it has moved the weights"
        elif self._config.on_bad_loss == "stop":
            cause = "it has changed no weight"
        elif self._num_in_a_row > self._config.max_skipped_steps:
            cause = f"it is bad step number {self._num_in_a_row} in a row, more than training.max_skipped_steps"
        else:
            return None
        above = f" (the limit is {numbers['norm_limit']:g})" if math.isfinite(numbers["norm_limit"]) else ""
        return (
            f"Step {step} has loss {numbers['loss_sum_nats']:g} nats and gradient norm {result.grad_norm:g}{above}; {cause}. Its "
            f"samples are in skipped_steps.jsonl, the first are {', '.join(keys[:_NUM_NAMED])}. Remove what is broken, lower the "
            "learning rate, or set training.on_bad_loss to skip; the same command continues from the last checkpoint."
        )

    def to_json(self) -> dict[str, Any]:
        """The state that `restore` reads."""
        return {
            "norms": list(self._norms),
            "is_of_alignment": self._is_of_alignment,
            "num_in_a_row": self._num_in_a_row,
            "num_skipped": self.num_skipped,
            "num_aligning": self._num_aligning,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from the state of `to_json`."""
        self._norms = deque(state["norms"], maxlen=_WINDOW_STEPS)
        # checkpoints of versions before this one say neither this nor the number of aligning steps
        self._is_of_alignment = state.get("is_of_alignment", False)
        self._num_in_a_row, self.num_skipped = state["num_in_a_row"], state["num_skipped"]
        self._num_aligning = state.get("num_aligning", 0)
