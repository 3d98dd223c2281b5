"""CLASSP on a rank's own partitions: few weights move in a step, and those less that have moved much."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

# a partition holds up to a thousand million weights, and a GPU that trains has no room for copies of all in float32
_ELEMENTS = 1 << 22


@dataclass(frozen=True)
class Classp:
    """The update of CLASSP (Ludwig 2024, arXiv:2405.09637), weight by weight, as its author's repository gives the algorithm:

    if g² > threshold: s ← s + |g|^p, w ← w − rate · g/(ε + s)^(1/p). With threshold 0 and p = 2 it is AdaGrad.

    CLASSP.py there differs from it: it decides for a whole tensor at once, and its sums are of |g| whatever p is.
    """

    threshold: float
    power: float
    epsilon: float

    @torch.no_grad()
    def move(self, weights: Tensor, gradient: Tensor, sums: Tensor, *, rate: float) -> None:
        """Update `weights`, which are flat, and their `sums` s, in place."""
        parts = (torch.split(tensor, _ELEMENTS) for tensor in (weights, gradient, sums))
        for w, g, s in zip(*parts, strict=True):
            moving = torch.where(g.square() > self.threshold, g, 0.0)
            s.add_(moving.abs().pow_(self.power))
            w.addcdiv_(moving, (s + self.epsilon).pow_(1 / self.power), value=-rate)
