"""The base model's tensors under ZeRO-3: this rank's partitions of what trains, kept as they were before the first step."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from pipeline.training.engine import TrainingEngine


class BasePartitions:
    """Copies, on the host, of this rank's partitions of the LLM's trained tensors; to be made before any step or resume.

    LoRA's factors begin at a product of zero, so that their beginning is the base as well.
    """

    def __init__(self, engine: TrainingEngine) -> None:
        self._engine = engine
        self._trained = [parameter for parameter in engine.model.llm.parameters() if parameter.requires_grad]
        self._base = [_partition(parameter).cpu().clone() for parameter in self._trained]

    @contextmanager
    def base_weights(self) -> Iterator[None]:
        """Let the LLM compute what its base does for as long as the context is open. Every rank must open it."""
        trained = [_partition(parameter).clone() for parameter in self._trained]
        self._put(self._base)
        try:
            yield
        finally:
            self._put(trained)

    @torch.no_grad()
    def _put(self, partitions: list[Tensor]) -> None:
        # what is still gathered whole would be computed with instead
        self._engine.release_gathered()
        for parameter, partition in zip(self._trained, partitions, strict=True):
            _partition(parameter).copy_(partition)


def _partition(parameter: torch.nn.Parameter) -> Tensor:
    partition: Tensor = parameter.ds_tensor.data  # type: ignore[attr-defined]
    return partition.detach()
