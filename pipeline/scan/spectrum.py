"""One matrix's singular spectrum: its two ends, its volume, and how exact they are. Pure maths.

Dimension letters: m the short side, n the long side, b the vectors read at a time. A matrix is only ever seen as blocks
(m, b) along its long side, so memory is m² and not m·n. Methods, from the fastest to the surest («rungs»):

gram      G = W·Wᵀ summed block by block, Cholesky G = L·Lᵀ, Lanczos on L·Lᵀ and its inverse, ‖Wᵀu‖ for the small end.
cholqr2   as gram, but of Y = L⁻¹·W, whose own factor L₂ mends what the first lost: W = L·L₂·Q (Yamamoto et al. 2015).
svd       Householder QR of Wᵀ block by block, then LAPACK's SVD of the triangle: backward stable for any matrix.

u = 2⁻⁵³ is float64's unit roundoff throughout.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
from scipy.linalg import blas, lapack

from pipeline.errors import ScanError
from pipeline.scan.dtypes import FloatArray
from pipeline.scan.lanczos import Eigenpair, estimate_norm, largest_eigenpair

Method = Literal["auto", "svd"]
DEFAULT_RTOL = 1e-6

_U = 2.0**-53
_BLOCK_NUMBERS = 1 << 22
# Grams of this many long-side vectors are summed apart and then in order, so that the sum is the same bits whoever formed them.
PIECE_VECTORS = 1 << 14
_MAX_STEPS = 400
_NUM_ETA_STEPS = 8
_ETA_MARGIN = 2.0
# η came out at 0.05 to 4 times u·κ²: below the one it needn't be estimated in vain, beyond the other it is never larger
_LEAST_ETA, _MOST_ETA = 0.05, 10.0
_QR_BLOCK = 32


class Matrix(Protocol):
    """A matrix whose short side is `short` and long side `long`, read along the long side."""

    short: int
    long: int
    is_float64: bool

    def block(self, start: int, stop: int) -> FloatArray:
        """Vectors `start` to `stop` of the long side: (short, stop − start), float64, in C or Fortran order."""


@dataclass(frozen=True)
class SpectrumStats:
    """What is known of a matrix's singular values σ₁ ≥ … ≥ σₘ.

    `sigma_min` is the smallest that isn't zero; `zero_sigmas` how many are zero, that is at most max(m, n)·2⁻⁵²·σ₁.
    `log2_volume` is Σ log₂ σᵢ over those that aren't. `error_bound` bounds the relative error of σ₁/`sigma_min`; `rung` is
    the method. A zero matrix has `sigma_max` = `sigma_min` = 0.
    """

    shape: tuple[int, int]
    sigma_max: float
    sigma_min: float
    zero_sigmas: int
    log2_volume: float
    frobenius: float
    error_bound: float
    rung: str

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


class ArrayMatrix:
    """A two-dimensional numpy array as a `Matrix`."""

    def __init__(self, values: np.ndarray[Any, Any]) -> None:
        self._tall = values if values.shape[0] > values.shape[1] else values.T
        self.long, self.short = self._tall.shape
        self.is_float64 = values.dtype.itemsize >= 8

    def block(self, start: int, stop: int) -> FloatArray:
        return self._tall[start:stop].T.astype(np.float64)


def spectrum_stats(weight: Any, *, rtol: float = DEFAULT_RTOL, method: Method = "auto") -> SpectrumStats:
    """Measure one matrix: a 2-D numpy array or torch tensor of any float dtype, on any device; computed in float64 on the CPU.

    κ is within `rtol` where float64 can give that, and within the result's `error_bound` always. Raises `ScanError` on a NaN
    or an infinity, `ValueError` for what has not two dimensions of at least one.
    """
    if hasattr(weight, "detach"):
        weight = weight.detach().cpu()
        weight = (weight if str(weight.dtype) == "torch.float64" else weight.float()).numpy()
    values = np.asarray(weight)
    if values.ndim != 2 or values.size == 0:
        raise ValueError(f"a matrix has two dimensions of at least one; this has shape {values.shape}")
    stats = measure(ArrayMatrix(values), rtol=rtol, method=method)
    return SpectrumStats(**{**stats.__dict__, "shape": values.shape})


def measure(
    matrix: Matrix, *, rtol: float = DEFAULT_RTOL, method: Method = "auto", gram: FloatArray | None = None
) -> SpectrumStats:
    """Climb the ladder until κ is known to `rtol`. `gram`, where others have formed it, is overwritten. Raises `ScanError`.

    `shape` of the result is (short, long).
    """
    scaled = _Scaled(matrix, _find_exponent(matrix)) if matrix.is_float64 else _Scaled(matrix, 0)
    if matrix.short == 1:
        norm = math.sqrt(sum(float(np.vdot(block, block)) for block in scaled.blocks()))
        _check_finite(norm)
        return _finish(scaled, np.array([norm]), "norm", frobenius=norm)
    if gram is None:
        gram = sum_pieces(scaled, range(num_pieces(matrix.long)))
    squares = np.diagonal(gram).copy()
    _check_finite(float(squares.sum()))
    frobenius = math.sqrt(float(squares.sum()))
    if method == "auto" and squares.min() > 0:
        stats = _measure_by_cholesky(scaled, gram, squares, rtol=rtol)
        if stats is not None:
            return stats
    del gram
    return _finish(scaled, _svdvals(triangularise(scaled)), "svd", frobenius=frobenius)


# ---- reading ----------------------------------------------------------------------------------------------------------


class _Scaled:
    """`matrix`·2^−exponent: squares of float64 values would over- or underflow; those of narrower formats can't."""

    def __init__(self, matrix: Matrix, exponent: int) -> None:
        self.matrix, self.exponent = matrix, exponent
        self.short, self.long = matrix.short, matrix.long

    def blocks(self, start: int = 0, stop: int | None = None) -> Iterator[FloatArray]:
        width = max(64, _BLOCK_NUMBERS // self.short)
        stop = self.long if stop is None else stop
        for begin in range(start, stop, width):
            block = self.matrix.block(begin, min(begin + width, stop))
            yield np.ldexp(block, -self.exponent) if self.exponent else block


def _find_exponent(matrix: Matrix) -> int:
    """The binary exponent of the largest magnitude, exact to divide by."""
    peak = max(float(np.abs(block).max()) for block in _Scaled(matrix, 0).blocks())
    _check_finite(peak)
    return math.frexp(peak)[1] if peak > 0 else 0


def _check_finite(value: float) -> None:
    if not math.isfinite(value):
        raise ScanError("it holds NaN or infinity, so it has no singular values")


# ---- Gram, Cholesky, Lanczos --------------------------------------------------------------------------------------------


def num_pieces(long: int) -> int:
    """How many Grams are summed to that of a matrix with this long side."""
    return -(-long // PIECE_VECTORS)


def piece_gram(matrix: Matrix, piece: int) -> FloatArray:
    """G of one piece of the long side, lower triangle, (m, m) in Fortran order. Of narrow formats only: nothing is scaled."""
    assert not matrix.is_float64
    return sum_pieces(_Scaled(matrix, 0), [piece])


def sum_pieces(scaled: _Scaled, pieces: Any) -> FloatArray:
    """The lower triangle of Σ W_p·W_pᵀ over `pieces`, each summed by itself first."""
    total: FloatArray | None = None
    for piece in pieces:
        begin = piece * PIECE_VECTORS
        gram = np.zeros((scaled.short, scaled.short), order="F")
        for block in scaled.blocks(begin, min(begin + PIECE_VECTORS, scaled.long)):
            _add_square(block, gram)
        if total is None:
            total = gram
        else:
            total += gram
    assert total is not None
    return total


def _add_square(block: FloatArray, gram: FloatArray) -> None:
    # dsyrk does half the flops of a product; the transposed view spares the copy that a C-ordered argument would cost
    if block.flags.f_contiguous:
        blas.dsyrk(1.0, block, beta=1.0, c=gram, trans=0, lower=1, overwrite_c=1)
    else:
        blas.dsyrk(1.0, block.T, beta=1.0, c=gram, trans=1, lower=1, overwrite_c=1)


class _Factor:
    """A product of lower triangles L₁·…·L_k whose singular values are the matrix's."""

    def __init__(self, triangles: list[FloatArray]) -> None:
        self.triangles = triangles
        self.log2_volume = math.fsum(math.fsum(np.log2(np.diagonal(triangle))) for triangle in triangles)

    def square(self, x: FloatArray) -> FloatArray:
        """F·Fᵀ·x"""
        for triangle in self.triangles:
            x = blas.dtrmv(triangle, x, lower=1, trans=1)
        for triangle in reversed(self.triangles):
            x = blas.dtrmv(triangle, x, lower=1, overwrite_x=1)
        return x

    def solve(self, x: FloatArray, *, transposed: bool = False) -> FloatArray:
        """F⁻¹·x, or F⁻ᵀ·x."""
        for triangle in reversed(self.triangles) if transposed else self.triangles:
            x = blas.dtrsv(triangle, x, lower=1, trans=int(transposed))
        return x

    def inverse_square(self, x: FloatArray) -> FloatArray:
        """(F·Fᵀ)⁻¹·x"""
        return self.solve(self.solve(x), transposed=True)


def _measure_by_cholesky(scaled: _Scaled, gram: FloatArray, squares: FloatArray, *, rtol: float) -> SpectrumStats | None:
    """The rungs that rest on a Cholesky factor; None where they can't reach `rtol`."""
    triangle, failed_at = lapack.dpotrf(gram, lower=1, clean=0, overwrite_a=1)
    if failed_at or np.diagonal(triangle).min() ** 2 < 4 * scaled.short * _U * squares.max():
        return None
    frobenius = math.sqrt(float(squares.sum()))
    factor = _Factor([triangle])
    ends = _find_ends(factor, rtol=rtol)
    if ends is not None:
        stats = _accept_gram(scaled, factor, ends, frobenius=frobenius, rtol=rtol)
        if stats is not None:
            return stats
    second = _second_triangle(scaled, triangle)
    if second is None:
        return None
    factor = _Factor([triangle, second])
    ends = _find_ends(factor, rtol=rtol)
    if ends is None:
        return None
    largest, smallest = ends
    sigmas = math.sqrt(largest.value), 1 / math.sqrt(smallest.value)
    # the second pass leaves a backward error of a few u·‖W‖, as an SVD does
    bound = _backward_error(scaled, sigmas[0] / sigmas[1]) + largest.error + smallest.error
    if bound > rtol:
        return None
    return _finish_ends(scaled, *sigmas, factor=factor, bound=bound, rung="cholqr2", frobenius=frobenius)


def _find_ends(factor: _Factor, *, rtol: float) -> tuple[Eigenpair, Eigenpair] | None:
    """The largest eigenpairs of F·Fᵀ and of its inverse, to a fraction of `rtol`; None where rounding makes nonsense of them."""
    size = len(factor.triangles[0])
    with np.errstate(all="ignore"):
        largest = largest_eigenpair(factor.square, size, rtol=rtol / 10, max_steps=_MAX_STEPS)
        smallest = largest_eigenpair(factor.inverse_square, size, rtol=rtol / 10, max_steps=_MAX_STEPS)
    numbers = (largest.value, smallest.value, largest.error, smallest.error)
    return (largest, smallest) if all(math.isfinite(number) for number in numbers) and smallest.value > 0 else None


def _accept_gram(
    scaled: _Scaled, factor: _Factor, ends: tuple[Eigenpair, Eigenpair], *, frobenius: float, rtol: float
) -> SpectrumStats | None:
    """The Gram's answer where its error is within `rtol`: by κ alone, or by η = ‖L⁻¹·W·Wᵀ·L⁻ᵀ − I‖ (Ostrowski)."""
    largest, smallest = ends
    sigma_max, sigma_min = math.sqrt(largest.value), 1 / math.sqrt(smallest.value)
    kappa = sigma_max / sigma_min
    lanczos_error = largest.error + smallest.error
    eta = _MOST_ETA * _U * kappa**2
    if eta + lanczos_error > rtol:
        if _LEAST_ETA * _U * kappa**2 > rtol:
            return None
        eta = _ETA_MARGIN * estimate_eta(scaled, factor)
        if not eta < 0.5 or eta + lanczos_error > rtol:
            return None
    bound = eta + lanczos_error + _backward_error(scaled, kappa)
    if eta > rtol / 100:
        # one more inverse step clears the vector of the large end, which ‖Wᵀu‖ would weigh κ² times
        vector = factor.inverse_square(smallest.vector)
        above = _norm_through(scaled, vector / np.linalg.norm(vector))
        sigma_min = above if above <= sigma_min * (1 + bound) else sigma_min
    return _finish_ends(scaled, sigma_max, sigma_min, factor=factor, bound=bound, rung="gram", frobenius=frobenius)


def estimate_eta(scaled: _Scaled, factor: _Factor) -> float:
    """‖L⁻¹·W·Wᵀ·L⁻ᵀ − I‖₂, from a few Lanczos steps: a pass over W each."""

    def apply(x: FloatArray) -> FloatArray:
        y = factor.solve(x, transposed=True)
        image = np.zeros(scaled.short)
        for block in scaled.blocks():
            image += block @ (block.T @ y)
        return factor.solve(image) - x

    return estimate_norm(apply, scaled.short, num_steps=_NUM_ETA_STEPS)


def _norm_through(scaled: _Scaled, vector: FloatArray) -> float:
    """‖Wᵀu‖: for a unit u near the last left singular vector, σ_min to second order, and never below it."""
    return math.sqrt(sum(float(np.sum((block.T @ vector) ** 2)) for block in scaled.blocks()))


def _second_triangle(scaled: _Scaled, triangle: FloatArray) -> FloatArray | None:
    """The Cholesky factor of Y·Yᵀ with Y = L⁻¹·W; None where Y is too far from orthonormal rows for it to help."""
    gram = np.zeros_like(triangle, order="F")
    for block in scaled.blocks():
        _add_square(blas.dtrsm(1.0, triangle, block, lower=1, overwrite_b=block.flags.f_contiguous), gram)
    squares = np.diagonal(gram)
    if not (np.isfinite(squares).all() and squares.min() > 0.1 and squares.max() < 10):
        return None
    second, failed_at = lapack.dpotrf(gram, lower=1, clean=0, overwrite_a=1)
    # the first factor must have left a well-conditioned rest
    return None if failed_at or np.diagonal(second).min() < 0.3 else second


# ---- QR and SVD -----------------------------------------------------------------------------------------------------------


def triangularise(scaled: _Scaled) -> FloatArray:
    """R of Wᵀ = Q·R, (m, m) upper triangular, updated block by block."""
    size = scaled.short
    upper = np.zeros((size, size), order="F")
    for block in scaled.blocks():
        tall = np.asfortranarray(block.T)
        upper, _, _, info = lapack.dtpqrt(0, min(_QR_BLOCK, size), upper, tall, overwrite_a=1, overwrite_b=1)
        assert info == 0
    return np.triu(upper)


def _svdvals(triangle: FloatArray) -> FloatArray:
    # numpy's lets other threads run meanwhile, scipy's doesn't: the ranks' heartbeat would stop
    return np.asarray(np.linalg.svd(triangle, compute_uv=False), dtype=np.float64)


def _backward_error(scaled: _Scaled, kappa: float) -> float:
    """The relative error of κ that a backward error of a few roundings of σ₁ makes."""
    return 8 * math.sqrt(scaled.short) * _U * kappa


# ---- the result -------------------------------------------------------------------------------------------------------------


def _finish(scaled: _Scaled, sigmas: FloatArray, rung: str, *, frobenius: float) -> SpectrumStats:
    """The statistics of a whole spectrum, in descending order."""
    tau = max(scaled.short, scaled.long) * 2 * _U * float(sigmas[0])
    nonzero = sigmas[sigmas > tau]
    sigma_min = float(nonzero[-1]) if len(nonzero) else 0.0
    kappa = float(sigmas[0]) / sigma_min if sigma_min else 0.0
    return SpectrumStats(
        shape=(scaled.short, scaled.long),
        sigma_max=math.ldexp(float(sigmas[0]), scaled.exponent),
        sigma_min=math.ldexp(sigma_min, scaled.exponent),
        zero_sigmas=scaled.short - len(nonzero),
        log2_volume=math.fsum(np.log2(nonzero)) + scaled.exponent * len(nonzero),
        frobenius=math.ldexp(frobenius, scaled.exponent),
        error_bound=_backward_error(scaled, kappa),
        rung=rung,
    )


def _finish_ends(
    scaled: _Scaled, sigma_max: float, sigma_min: float, *, factor: _Factor, bound: float, rung: str, frobenius: float
) -> SpectrumStats:
    """The statistics of a matrix of full rank, from its two ends."""
    return SpectrumStats(
        shape=(scaled.short, scaled.long),
        sigma_max=math.ldexp(sigma_max, scaled.exponent),
        sigma_min=math.ldexp(sigma_min, scaled.exponent),
        zero_sigmas=0,
        log2_volume=factor.log2_volume + scaled.exponent * scaled.short,
        frobenius=math.ldexp(frobenius, scaled.exponent),
        error_bound=bound,
        rung=rung,
    )
