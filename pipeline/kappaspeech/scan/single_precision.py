"""The rung `single` of `spectrum.py`: float32 finds the vectors of both ends at twice the rate, and a pass over W in float64
measures what they stand for.

Let G̃ and L·Lᵀ be what float32 makes of G = W·Wᵀ. Lanczos in float64 gives the unit vector u of either one's end. Then θ = ‖Wᵀu‖²
and r = G·u − θ·u are those of W itself. Temple's inequality says that no eigenvalue of G lies beyond θ by more than ‖r‖²/(ν − θ)
if all the others are beyond ν (Parlett, The Symmetric Eigenvalue Problem, 1998, §10.5). Lanczos knows where the others of G̃ and
L·Lᵀ are, and what the pass makes of a random vector tells how far those of G may be from them. Two things are taken for granted:
that random vector meets the rounding errors as it would those of no direction, and float32 makes no double of two ends that
differ. Lanczos sees one of a double alone; to merge two, float32 must move them to within some 10⁻¹⁰ of each other.

Dimension letters: m the short side, n the long side. u = 2⁻²⁴ is float32's unit roundoff.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

import numpy as np

from kappaspeech.scan.algebra import Factor, Matrix
from kappaspeech.scan.cholesky import find_end, lanczos_error, solve_twice
from kappaspeech.scan.lanczos import Eigenpair
from kappaspeech.scan.partition import is_long
from kappaspeech.scan.scaled_matrix import ScaledMatrix
from kappaspeech.scan.statistics import SpectrumStats, backward_error, finish_ends
from kappaspeech.tensor_files.dtypes import FloatArray

# squares of rows that float32 holds, with their parts, as well as its roundoff says
_LEAST_SQUARE, _MOST_SQUARE = 1e-20, 1e30
# of the tolerance of κ, for the square of each end
_SHARE = 0.3
_MAX_PASSES = 3
_MARGIN = 4.0
# Of the second smallest eigenvalue. What float32 added to G moves the volume too: at this share by less than a thousandth of a
# bit, as observed.
_MOST_ADDED = 0.02
# of the smallest, which is measured anew
_MOST_ADDED_TO_LAST = 0.1
_SEED = 20191014


def suits_single(matrix: Matrix) -> bool:
    """True if float32 is likely to find the ends of a matrix of that shape and format."""
    return not matrix.is_float64 and matrix.short > 1 and is_long((matrix.short, matrix.long))


def measure_in_single(scaled: ScaledMatrix, gram: Any, *, rtol: float) -> SpectrumStats | None:
    """The statistics by a Gram of float32, which is overwritten; None if they aren't certain to `rtol`."""
    algebra = scaled.algebra
    squares = algebra.diagonal(gram)
    if not (np.isfinite(squares).all() and squares.min() > _LEAST_SQUARE and squares.max() < _MOST_SQUARE):
        return None
    probe = algebra.vector(_random_vector(scaled.short))
    wide = algebra.widen(gram)
    largest = find_end(scaled, partial(algebra.times, wide), rtol=rtol, with_second=True)
    if largest is None or largest.second >= largest.value:
        return None
    image = algebra.times(wide, probe)
    # the memory of one such square is enough
    del wide
    triangle = algebra.cholesky(gram)
    if triangle is None:
        return None
    factor = algebra.factor([algebra.widen(triangle)])
    smallest = find_end(scaled, partial(solve_twice, factor), rtol=rtol, with_second=True)
    if smallest is None or smallest.second >= smallest.value:
        return None
    found = _Found(factor, largest, smallest, probe, image, math.sqrt(float(squares.sum(dtype=np.float64))))
    return _measure_ends(scaled, found, rtol=rtol)


@dataclass(frozen=True)
class _Found:
    """All that float32 says of a matrix: both ends, a random vector z and G̃·z, and ‖W‖_F."""

    factor: Factor
    largest: Eigenpair
    smallest: Eigenpair
    probe: Any
    image: Any
    frobenius: float


@dataclass(frozen=True)
class _Measured:
    """A unit vector u with θ = ‖Wᵀu‖², r = G·u − θ·u and ‖r‖², of W itself."""

    vector: Any
    value: float
    residual: Any
    squared_residual: float

    def error(self, distance: float) -> float:
        """The part of θ by which an eigenvalue may be beyond it, if all others are so far beyond it."""
        return self.squared_residual / (distance * self.value) if distance > 0 else math.inf


def _measure_ends(scaled: ScaledMatrix, found: _Found, *, rtol: float) -> SpectrumStats | None:
    factor, largest, smallest = found.factor, found.largest, found.smallest
    high, low, image = _pass_over(scaled, [largest.vector, smallest.vector], found.probe)
    # Frobenius norms of what float32 added to G, by what that makes of a random vector
    factor_of_norm = _MARGIN * math.sqrt(scaled.short)
    above = largest.second + factor_of_norm * _norm(image - found.image)
    added = factor_of_norm * _norm(image - factor.square_times(found.probe))
    below = 1 / smallest.second - added
    if not (added * smallest.second < _MOST_ADDED and added * smallest.value < _MOST_ADDED_TO_LAST):
        return None
    high_error = high.error(high.value - above)
    if high_error > rtol:
        return None
    for _ in range(1, _MAX_PASSES):
        if low.error(below - low.value) <= _SHARE * rtol:
            break
        # a step of inverse iteration by L·Lᵀ, which is nearly G
        better = low.vector - solve_twice(factor, low.residual)
        (low,) = _pass_over(scaled, [better / _norm(better)])
    bound = (high_error + low.error(below - low.value)) / 2 + lanczos_error(largest, smallest)
    sigma_max, sigma_min = math.sqrt(high.value), math.sqrt(low.value)
    bound += backward_error(scaled, sigma_max / sigma_min)
    if bound > rtol:
        return None
    # the ends as they are in place of L·Lᵀ's: the small one is what float32 has wrong most
    volume = factor.log2_volume + math.log2(low.value * smallest.value) / 2
    return finish_ends(scaled, sigma_max, sigma_min, log2_volume=volume, bound=bound, rung="single", frobenius=found.frobenius)


def _pass_over(scaled: ScaledMatrix, vectors: list[Any], probe: Any | None = None) -> list[Any]:
    """Each unit vector as W has it, a `_Measured`, and then G times the probe if there is one."""
    all_vectors = vectors if probe is None else [*vectors, probe]
    images: list[Any] = [0.0] * len(all_vectors)
    squares: list[Any] = [0.0] * len(all_vectors)
    for block in scaled.blocks():
        for index, vector in enumerate(all_vectors):
            projected = block.T @ vector
            images[index] = images[index] + block @ projected
            squares[index] = squares[index] + projected @ projected
    residuals = [image - square * vector for vector, square, image in zip(all_vectors, squares, images, strict=True)]
    # one wait for a device
    numbers = scaled.algebra.empty(2, len(vectors))
    for index in range(len(vectors)):
        numbers[0, index], numbers[1, index] = squares[index], residuals[index] @ residuals[index]
    values, squared_residuals = scaled.algebra.to_numpy(numbers).tolist()
    measured = [_Measured(vectors[i], values[i], residuals[i], squared_residuals[i]) for i in range(len(vectors))]
    return measured if probe is None else [*measured, images[-1]]


def _norm(vector: Any) -> float:
    return float((vector @ vector) ** 0.5)


@lru_cache(maxsize=16)
def _random_vector(size: int) -> FloatArray:
    """A unit vector of no direction."""
    vector = np.random.Generator(np.random.PCG64(_SEED)).standard_normal(size)
    return vector / float(np.linalg.norm(vector))
