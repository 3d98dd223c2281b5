"""A stand-in for a training's engine: what it gathers, without a model, a step or DeepSpeed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

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
    """Every rank has the same tensors. `step` changes all tensors in place, as an optimizer does."""

    def __init__(self, *, rank: int = 0, keeps_average: bool = False) -> None:
        self.rank = rank
        generator = torch.Generator().manual_seed(0)
        self.keeps_average = keeps_average
        self.tensors = {
            kind: {name: torch.randn(shape, generator=generator) for name, shape in SHAPES.items()}
            for kind in ("weight", "exp_avg", "exp_avg_sq", "average")
        }

    def step(self) -> None:
        for tensors in self.tensors.values():
            for tensor in tensors.values():
                tensor += 1

    def trained_shapes(self) -> dict[str, tuple[int, ...]]:
        return SHAPES

    def collect(self, kinds: Sequence[str], owners: Iterator[int]) -> Iterator[tuple[str, str, Tensor | None]]:
        for name in SHAPES:
            for kind in kinds:
                yield name, kind, self.tensors[kind][name].clone() if next(owners) == self.rank else None
