"""Elastic weight consolidation on a rank's own partitions: the Fisher's diagonal, and the pull back that it weighs.

Nothing is gathered: the squares of a gradient's partition are a partition of its squares.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial

import torch
from torch import Tensor

from kappaspeech.errors import TrainingError
from kappaspeech.zero3.engine import MicroBatch, TrainingEngine


class Consolidation:
    """The empirical Fisher F of the LLM's trained weights, and where they began, in float32 (Kirkpatrick 2017, Eq. 3).

    From `hold` on each update follows the gradient of the loss + weight/2 · Σ F (θ − θ₀)². DeepSpeed clips by the norm of the
    loss's gradient alone; the penalty's is scaled as that was, so that their sum keeps its direction.
    """

    def __init__(self, engine: TrainingEngine) -> None:
        """θ₀ are the weights as they are now."""
        self._engine = engine
        # by the partition: they hash by identity
        self.fisher: dict[Tensor, Tensor] = {
            partition: torch.zeros_like(partition) for partition in engine.states.llm_partitions()
        }
        self._start = {partition: partition.detach().clone() for partition in self.fisher}

    def measure(self, texts: Iterable[MicroBatch], *, num_tokens: int, prefix_ids: Tensor, suffix_ids: Tensor) -> None:
        """Measure F = Σ (∂ Σ −log p / ∂θ)² / `num_tokens`, the sum over texts, of which all ranks pass each: alike on any ranks.

        A text's squared gradient is the sum of its tokens' in expectation, as the gradients of −log p of one token after another
        are uncorrelated. Raises `TrainingError`, on every rank, for a gradient that isn't finite. A collective.
        """
        for number, batch in enumerate(texts):
            norm = self._engine.look_at_gradient(batch, self._add, prefix_ids=prefix_ids, suffix_ids=suffix_ids, seed=number)
            if not norm < float("inf"):
                raise TrainingError(
                    f"Piece {number} of ewc.texts has a gradient that isn't finite, so there is no Fisher information. Take "
                    "longer lines of plain text."
                )
        for fisher in self.fisher.values():
            fisher.div_(num_tokens)

    def _add(self, partition: Tensor, clipped: float) -> None:
        assert partition.grad is not None
        self.fisher[partition].addcmul_(partition.grad, partition.grad, value=clipped**-2)

    def hold(self, weight: float) -> None:
        """Pull each weight back from now on."""
        self._engine.change_gradients(partial(self._pull, weight))

    def _pull(self, weight: float, partition: Tensor, clipped: float) -> None:
        assert partition.grad is not None
        moved = partition.detach() - self._start[partition]
        partition.grad.addcmul_(self.fisher[partition], moved, value=weight * clipped)
