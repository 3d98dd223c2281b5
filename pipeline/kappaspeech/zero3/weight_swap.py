"""Other weights in place of those that train, under ZeRO-3: the base model's from before the first step, or the average's."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor

from kappaspeech.model.lora import is_first_factor, public_names
from kappaspeech.zero3.engine import TrainingEngine
from kappaspeech.zero3.whole_tensors import wait_until_written


class BasePartitions:
    """Copies, on the host, of this rank's partitions of the LLM's trained tensors; to be made before any step or resume.

    LoRA's factors begin at a product of zero, so their beginning is the base as well.
    """

    def __init__(self, engine: TrainingEngine) -> None:
        self._engine = engine
        names = public_names(engine.model.llm)
        named = {names[name]: parameter for name, parameter in engine.model.llm.named_parameters() if parameter.requires_grad}
        self._names, self._trained = list(named), list(named.values())
        self._base = [_partition(parameter).cpu().clone() for parameter in self._trained]

    @contextmanager
    def base_weights(self) -> Iterator[None]:
        """Let the LLM compute what its base does for as long as the context is open. Every rank must open it."""
        with _exchanged(self._engine, self._trained, self._base):
            yield

    @torch.no_grad()
    def draw_back(self, share: float) -> None:
        """Leave `share` of the LLM's way from its base: θ becomes θ₀ + share·(θ − θ₀), and so does its moving average.

        Of LoRA's factors B alone moves, to share·B, and their product with it. AdamW's moments stay as they are. Every rank must
        call it.
        """
        from deepspeed.utils import safe_get_local_fp32_param

        moved = []
        for name, parameter, base in zip(self._names, self._trained, self._base, strict=True):
            if not is_first_factor(name):
                self._engine.states.change_local(parameter, partial(_leave, share, of_way_from=base))
                moved.append(parameter)
        # one at a time: of an offloaded optimizer each is a copy on the device
        _put(self._engine, moved, map(safe_get_local_fp32_param, moved))


@contextmanager
def averaged_weights(engine: TrainingEngine) -> Iterator[None]:
    """Let the model compute with the moving average of its weights, if one is kept. Every rank must open it."""
    average = engine.states.local_average()
    with _exchanged(engine, [parameter for parameter, _ in average], [partition for _, partition in average]):
        yield


@contextmanager
def _exchanged(engine: TrainingEngine, parameters: list[Any], partitions: list[Tensor]) -> Iterator[None]:
    own = [_partition(parameter).clone() for parameter in parameters]
    _put(engine, parameters, partitions)
    try:
        yield
    finally:
        _put(engine, parameters, own)


def _leave(share: float, weights: Tensor, *, of_way_from: Tensor) -> Tensor:
    return torch.lerp(of_way_from.to(weights), weights, share)


@torch.no_grad()
def _put(engine: TrainingEngine, parameters: list[Any], partitions: Iterable[Tensor]) -> None:
    # a tensor that is still gathered whole would be computed with instead
    engine.release_gathered()
    for parameter, partition in zip(parameters, partitions, strict=True):
        _partition(parameter).copy_(partition)
        # hpZ's copy, which forward passes read first; the next one makes it anew. DeepSpeed drops it at its own steps alone
        parameter.ds_secondary_tensor = None
    wait_until_written()


def _partition(parameter: torch.nn.Parameter) -> Tensor:
    partition: Tensor = parameter.ds_tensor.data  # type: ignore[attr-defined]
    return partition.detach()
