"""CLASSP on a rank's own partitions: few weights move in a step, and those less that have moved much."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


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
        """Update `weights` and their `sums` s, in place."""
        moving = torch.where(gradient.square() > self.threshold, gradient, 0.0)
        sums.add_(moving.abs().pow_(self.power))
        weights.addcdiv_(moving, (sums + self.epsilon).pow_(1 / self.power), value=-rate)
