"""A stand-in for a training's engine: what it gathers, without a model, a step or DeepSpeed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from kappaspeech.zero3.trained_states import ADAM_STATES, AVERAGE, WEIGHTS

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

    def __init__(self, *, keeps_average: bool = False, rank: int = 0) -> None:
        generator = torch.Generator().manual_seed(0)
        self.keeps_average, self.rank = keeps_average, rank
        self.tensors = {
            kind: {name: torch.randn(shape, generator=generator) for name, shape in SHAPES.items()}
            for kind in (WEIGHTS, *ADAM_STATES, AVERAGE)
        }

    def step(self) -> None:
        for tensors in self.tensors.values():
            for tensor in tensors.values():
                tensor += 1

    def shapes(self) -> dict[str, tuple[int, ...]]:
        return SHAPES

    def collect(self, kind: str, owners: Mapping[str, int]) -> Iterator[tuple[str, Tensor | None]]:
        """All that the owners are to have, since there is nobody to send it."""
        assert owners.keys() == SHAPES.keys()
        return ((name, tensor.clone() if owners[name] == self.rank else None) for name, tensor in self.tensors[kind].items())
