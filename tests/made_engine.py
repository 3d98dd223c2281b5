"""A stand-in for a training's engine: what it gathers, without a model, a step or DeepSpeed."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

SHAPES = {
    "llm.a.weight": (40, 30),
    "llm.b.weight": (7,),
    "llm.c.weight": (64, 64),
    "adaptor.d.bias": (3, 1),
    "adaptor.e": (55, 5),
}


class MadeEngine:
    """Every rank's is the same. `step` changes all tensors in place, as an optimizer does. It is its own `states`."""

    @property
    def states(self) -> MadeEngine:
        return self

    def __init__(self, *, keeps_average: bool = False) -> None:
        generator = torch.Generator().manual_seed(0)
        self.keeps_average = keeps_average
        self.tensors = {
            kind: {name: torch.randn(shape, generator=generator) for name, shape in SHAPES.items()}
            for kind in ("trained", "exp_avg", "exp_avg_sq", "average")
        }

    def step(self) -> None:
        for tensors in self.tensors.values():
            for tensor in tensors.values():
                tensor += 1

    def shapes(self) -> dict[str, tuple[int, ...]]:
        return SHAPES

    def gather_weights(self, *, to_host: bool) -> Iterator[tuple[str, Tensor]]:
        assert not to_host
        return self._gather("trained")

    def gather_average(self, *, to_host: bool) -> Iterator[tuple[str, Tensor]]:
        assert not to_host
        return self._gather("average")

    def gather_moments(self, *, to_host: bool) -> Iterator[tuple[str, str, Tensor]]:
        assert not to_host
        for name in SHAPES:
            for state in ("exp_avg", "exp_avg_sq"):
                yield name, state, self.tensors[state][name].clone()

    def _gather(self, kind: str) -> Iterator[tuple[str, Tensor]]:
        return ((name, tensor.clone()) for name, tensor in self.tensors[kind].items())
