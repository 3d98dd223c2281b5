"""The rungs gram and cholqr2 of `spectrum.py`: a matrix's statistics from Cholesky factors of its Gram matrix.

u = 2⁻⁵³ is float64's unit roundoff throughout.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from kappaspeech.scan.algebra import Factor
from kappaspeech.scan.lanczos import Eigenpair, estimate_norm, largest_eigenpair
from kappaspeech.scan.scaled_matrix import ScaledMatrix
from kappaspeech.scan.statistics import UNIT_ROUNDOFF, SpectrumStats, backward_error, finish_ends, with_whole_spectrum
from kappaspeech.tensor_files.dtypes import FloatArray

_MAX_STEPS = 400
# of the tolerance of κ, for the square of each end: half of their sum is κ's
_LANCZOS_SHARE = 0.2
_NUM_ETA_STEPS = 8
_ETA_MARGIN = 2.0
# η was measured at 0.05 to 4 times u·κ²: if the first limit is past rtol, an estimate is in vain; η is never past the second
_LEAST_ETA, _MOST_ETA = 0.05, 10.0


def measure_by_cholesky(
    scaled: ScaledMatrix, gram: Any, squares: FloatArray, *, rtol: float, with_sigmas: bool
) -> SpectrumStats | None:
    """The rungs that rest on a Cholesky factor; None if they can't reach `rtol`."""
    algebra = scaled.algebra
    # of the Gram itself, before its factor takes its place: the largest eigenvalue is what rounding hurts least
    largest = find_end(scaled, partial(algebra.times, gram), rtol=rtol)
    triangle = algebra.cholesky(gram)
    if largest is None or triangle is None:
        return None
    if not algebra.diagonal(triangle).min() ** 2 >= 4 * scaled.short * UNIT_ROUNDOFF * squares.max():
        return None
    frobenius = math.sqrt(float(squares.sum()))
    factor = algebra.factor([triangle])
    smallest = find_end(scaled, partial(solve_twice, factor), rtol=rtol)
    if smallest is not None:
        stats = _accept_gram(scaled, factor, (largest, smallest), frobenius=frobenius, rtol=rtol)
        if stats is not None:
            return with_whole_spectrum(scaled, stats, algebra.svdvals_by_square(triangle)) if with_sigmas else stats
    second = _second_triangle(scaled, triangle)
    if second is None:
        return None
    factor = algebra.factor([triangle, second])
    smallest = find_end(scaled, partial(solve_twice, factor), rtol=rtol)
    if smallest is None:
        return None
    sigmas = math.sqrt(largest.value), 1 / math.sqrt(smallest.value)
    # the second pass leaves a backward error of a few u·‖W‖, as an SVD does
    bound = backward_error(scaled, sigmas[0] / sigmas[1]) + lanczos_error(largest, smallest)
    if bound > rtol:
        return None
    stats = finish_ends(scaled, *sigmas, log2_volume=factor.log2_volume, bound=bound, rung="cholqr2", frobenius=frobenius)
    return with_whole_spectrum(scaled, stats, algebra.svdvals(algebra.multiply(triangle, second))) if with_sigmas else stats


def find_end(scaled: ScaledMatrix, apply: Callable[[Any], Any], *, rtol: float, with_second: bool = False) -> Eigenpair | None:
    """The largest eigenpair of an operator of the short side, to a part of `rtol`; None if rounding makes nonsense of it."""
    share = _LANCZOS_SHARE * rtol
    pair = largest_eigenpair(
        apply, scaled.short, rtol=share, max_steps=_MAX_STEPS, algebra=scaled.algebra, with_second=with_second
    )
    return pair if math.isfinite(pair.value) and math.isfinite(pair.error) and pair.value > 0 else None


def lanczos_error(largest: Eigenpair, smallest: Eigenpair) -> float:
    """The relative error of κ by those of its ends' squares: √((1 + a)·(1 + b)) ≤ 1 + (a + b)/2."""
    return (largest.error + smallest.error) / 2


def solve_twice(factor: Factor, x: Any) -> Any:
    """(F·Fᵀ)⁻¹·x"""
    return factor.solve(factor.solve(x), transposed=True)


def _accept_gram(
    scaled: ScaledMatrix, factor: Factor, ends: tuple[Eigenpair, Eigenpair], *, frobenius: float, rtol: float
) -> SpectrumStats | None:
    """The Gram's answer if its error is within `rtol`: by κ alone, or by η = ‖L⁻¹·W·Wᵀ·L⁻ᵀ − I‖ (Ostrowski)."""
    largest, smallest = ends
    sigma_max, sigma_min = math.sqrt(largest.value), 1 / math.sqrt(smallest.value)
    kappa = sigma_max / sigma_min
    missing = lanczos_error(largest, smallest)
    eta = _MOST_ETA * UNIT_ROUNDOFF * kappa**2
    if eta + missing > rtol:
        if _LEAST_ETA * UNIT_ROUNDOFF * kappa**2 > rtol:
            return None
        eta = _ETA_MARGIN * _estimate_eta(scaled, factor)
        if not eta < 0.5 or eta + missing > rtol:
            return None
    bound = eta + missing + backward_error(scaled, kappa)
    if eta > rtol / 100:
        # one more inverse step clears the vector of the large end, which ‖Wᵀu‖ would weigh κ² times
        vector = solve_twice(factor, smallest.vector)
        above = _norm_through(scaled, vector / (vector @ vector) ** 0.5)
        sigma_min = above if above <= sigma_min * (1 + bound) else sigma_min
    return finish_ends(
        scaled, sigma_max, sigma_min, log2_volume=factor.log2_volume, bound=bound, rung="gram", frobenius=frobenius
    )


def _estimate_eta(scaled: ScaledMatrix, factor: Factor) -> float:
    """‖L⁻¹·W·Wᵀ·L⁻ᵀ − I‖₂, from a few Lanczos steps: a pass over W each."""

    def apply(x: Any) -> Any:
        y = factor.solve(x, transposed=True)
        image = sum(block @ (block.T @ y) for block in scaled.blocks())
        return factor.solve(image) - x

    return estimate_norm(apply, scaled.short, num_steps=_NUM_ETA_STEPS, algebra=scaled.algebra)


def _norm_through(scaled: ScaledMatrix, vector: Any) -> float:
    """‖Wᵀu‖: for a unit u near the last left singular vector, σ_min to second order, and never below it."""
    images = (block.T @ vector for block in scaled.blocks())
    return math.sqrt(float(scaled.algebra.to_numpy(sum(image @ image for image in images))))


def _second_triangle(scaled: ScaledMatrix, triangle: Any) -> Any | None:
    """The Cholesky factor of Y·Yᵀ with Y = L⁻¹·W; None if Y is too far from orthonormal rows for it to help."""
    algebra = scaled.algebra
    gram = algebra.zeros(scaled.short)
    for block in scaled.blocks():
        algebra.add_square(algebra.solve_block(triangle, block), gram)
    squares = algebra.diagonal(gram)
    if not (np.isfinite(squares).all() and squares.min() > 0.1 and squares.max() < 10):
        return None
    second = algebra.cholesky(gram)
    # the first factor must have left a well-conditioned rest
    return None if second is None or algebra.diagonal(second).min() < 0.3 else second
