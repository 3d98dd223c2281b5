"""Statistics of a matrix's singular values, from all of them or from their two ends."""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass, field, replace

import numpy as np

from kappaspeech.errors import ScanError
from kappaspeech.scan.scaled_matrix import ScaledMatrix
from kappaspeech.tensor_files.dtypes import FloatArray

# float64's unit roundoff
UNIT_ROUNDOFF = 2.0**-53


@dataclass(frozen=True)
class SpectrumStats:
    """Statistics of a matrix's singular values σ₁ ≥ … ≥ σₘ.

    `sigma_min` is the smallest that isn't zero; `zero_sigmas` the number that are zero, that is at most max(m, n)·2⁻⁵²·σ₁.
    `log2_volume` is Σ log₂ σᵢ over those that aren't. `error_bound` bounds the relative error of σ₁/`sigma_min`; `rung` is the
    method. A zero matrix has `sigma_max` = `sigma_min` = 0.
    """

    shape: tuple[int, int]
    sigma_max: float
    sigma_min: float
    zero_sigmas: int
    log2_volume: float
    frobenius: float
    error_bound: float
    rung: str
    # all σᵢ, descending, (m,), if they were asked for
    sigmas: FloatArray | None = field(default=None, compare=False, repr=False)

    @property
    def kappa(self) -> float:
        """κ(W) = σ₁/σₘ; `inf` for a rank-deficient matrix. arXiv:2506.16289, Eq. (1)."""
        return math.inf if self.zero_sigmas else self.sigma_max / self.sigma_min

    @property
    def kappa_nonzero(self) -> float:
        """σ₁ over the smallest non-zero singular value; `inf` for a zero matrix."""
        return self.sigma_max / self.sigma_min if self.sigma_min > 0 else math.inf

    @property
    def stable_rank(self) -> float:
        """‖W‖²_F / σ₁², between 1 and m; 0 for a zero matrix."""
        return (self.frobenius / self.sigma_max) ** 2 if self.sigma_max > 0 else 0.0

    def output_entropy_bits(self, sigma_x: float = 1.0) -> float:
        """h(Wx) in bits for x ~ N(0, σ_x²·I): r·log₂(σ_x·√(2πe)) + Σ log₂ σᵢ on the r dimensions that W reaches.
        arXiv:2506.16289, Eq. (6)."""
        reached = min(self.shape) - self.zero_sigmas
        return reached * math.log2(sigma_x * math.sqrt(2 * math.pi * math.e)) + self.log2_volume


def backward_error(scaled: ScaledMatrix, kappa: float) -> float:
    """The relative error of κ by a backward error of a few roundings of σ₁."""
    return 8 * math.sqrt(scaled.short) * UNIT_ROUNDOFF * kappa


def finish(scaled: ScaledMatrix, sigmas: FloatArray, rung: str, *, frobenius: float, with_sigmas: bool) -> SpectrumStats:
    """The statistics of a whole spectrum, in descending order."""
    tau = max(scaled.short, scaled.long) * 2 * UNIT_ROUNDOFF * float(sigmas[0])
    nonzero = sigmas[sigmas > tau]
    sigma_min = float(nonzero[-1]) if len(nonzero) else 0.0
    kappa = float(sigmas[0]) / sigma_min if sigma_min else 0.0
    return SpectrumStats(
        shape=(scaled.short, scaled.long),
        sigma_max=_unscale(scaled, float(sigmas[0])),
        sigma_min=_unscale(scaled, sigma_min),
        zero_sigmas=scaled.short - len(nonzero),
        log2_volume=math.fsum(np.log2(nonzero)) + scaled.exponent * len(nonzero),
        frobenius=_unscale(scaled, frobenius),
        error_bound=backward_error(scaled, kappa),
        rung=rung,
        sigmas=np.ldexp(sigmas, scaled.exponent) if with_sigmas else None,
    )


def _unscale(scaled: ScaledMatrix, value: float) -> float:
    """`value` of the matrix itself. Raises `ScanError` if float64 can't hold it."""
    try:
        plain = math.ldexp(value, scaled.exponent)
    except OverflowError:
        plain = math.inf
    # a value below the least normal number has lost digits
    if math.isinf(plain) or (value > 0 and plain < sys.float_info.min):
        raise ScanError("its singular values are beyond the range of float64")
    return plain


def finish_ends(
    scaled: ScaledMatrix, sigma_max: float, sigma_min: float, *, log2_volume: float, bound: float, rung: str, frobenius: float
) -> SpectrumStats:
    """The statistics of a matrix of full rank, from its two ends."""
    return SpectrumStats(
        shape=(scaled.short, scaled.long),
        sigma_max=_unscale(scaled, sigma_max),
        sigma_min=_unscale(scaled, sigma_min),
        zero_sigmas=0,
        log2_volume=log2_volume + scaled.exponent * scaled.short,
        frobenius=_unscale(scaled, frobenius),
        error_bound=bound,
        rung=rung,
    )


def with_whole_spectrum(scaled: ScaledMatrix, stats: SpectrumStats, sigmas: FloatArray) -> SpectrumStats:
    """`stats` with the whole spectrum, whose ends are those that were measured."""
    sigmas = np.clip(np.ldexp(sigmas, scaled.exponent), stats.sigma_min, stats.sigma_max)
    sigmas[0], sigmas[-1] = stats.sigma_max, stats.sigma_min
    return replace(stats, sigmas=sigmas)
