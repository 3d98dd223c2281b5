"""The scores by which tensors can be ordered. Small means well conditioned, and none depends on the matrix's scale.

Raw κ mostly separates shapes: square matrices have a large one. The other scores depend less on the shape.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING

from kappaspeech.errors import SelectionError

if TYPE_CHECKING:
    from kappaspeech.scan.statistics import SpectrumStats


def kappa(stats: SpectrumStats) -> float:
    """κ = σ₁/σₘ, `inf` if rank deficient: the paper's score."""
    return stats.kappa


def kappa_nonzero(stats: SpectrumStats) -> float:
    """σ₁ over the smallest singular value that isn't zero: finite for a rank-deficient tensor."""
    return stats.kappa_nonzero


def kappa_over_gaussian(stats: SpectrumStats) -> float:
    """κ over that of a Gaussian matrix of this shape: κ₀ = (√n + √m)/(√n − √(m−1)) (Marchenko–Pastur; Edelman 1988)."""
    short, long = sorted(stats.shape)
    gaussian = (math.sqrt(long) + math.sqrt(short)) / (math.sqrt(long) - math.sqrt(short - 1))
    return stats.kappa / gaussian


def entropy_deficit(stats: SpectrumStats) -> float:
    """2 to the bits a dimension loses to unequal singular values, over a Gaussian's: 2^(D − D₀).

    D = log₂(‖W‖_F/√m) − (1/m)·Σ log₂ σᵢ is 0 iff κ = 1 (arXiv:2506.16289, Theorem 1); D₀ is a Gaussian matrix's mean of it. `inf`
    if rank deficient. As a power of two it is positive, like the other scores.
    """
    if stats.zero_sigmas:
        return math.inf
    from scipy.special import digamma  # half of a scan's imports, and most scans never ask for this score

    short, long = sorted(stats.shape)
    deficit = math.log2(stats.frobenius / math.sqrt(short)) - stats.log2_volume / short
    mean_log = math.fsum(float(digamma((long - i) / 2)) / math.log(2) + 1 for i in range(short)) / (2 * short)
    bits = deficit - (math.log2(math.sqrt(long)) - mean_log)
    return math.inf if bits >= sys.float_info.max_exp else 2**bits


def stable_rank(stats: SpectrumStats) -> float:
    """m over the stable rank ‖W‖²_F/σ₁²: 1 if all singular values are equal, m for a matrix of rank one."""
    return min(stats.shape) / stats.stable_rank if stats.stable_rank > 0 else math.inf


# by their names in commands and files; the help of `kappaspeech select` lists them
SCORES: dict[str, Callable[[SpectrumStats], float]] = {
    "kappa": kappa,
    "kappa-nonzero": kappa_nonzero,
    "kappa-over-gaussian": kappa_over_gaussian,
    "entropy-deficit": entropy_deficit,
    "stable-rank": stable_rank,
}


def check_score(name: str) -> None:
    """Raise `SelectionError` for a score that isn't one."""
    if name not in SCORES:
        raise SelectionError(f"There is no score {name!r}. There are: {', '.join(SCORES)}.")
