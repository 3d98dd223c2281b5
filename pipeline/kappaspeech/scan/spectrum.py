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
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Literal

import numpy as np

from kappaspeech.errors import ScanError
from kappaspeech.scan.algebra import Algebra, Factor, HostAlgebra, Matrix
from kappaspeech.scan.lanczos import Eigenpair, estimate_norm, largest_eigenpair
from kappaspeech.tensor_files.dtypes import FloatArray, StoredArray

Method = Literal["auto", "svd"]
DEFAULT_RTOL = 1e-6

_U = 2.0**-53
# Grams of this many long-side vectors are summed apart and then in order, so that the sum is the same bits whoever formed them.
PIECE_VECTORS = 1 << 14
_MAX_STEPS = 400
_NUM_ETA_STEPS = 8
_ETA_MARGIN = 2.0
# η came out at 0.05 to 4 times u·κ²: below the one it needn't be estimated in vain, beyond the other it is never larger
_LEAST_ETA, _MOST_ETA = 0.05, 10.0


@dataclass(frozen=True)
class SpectrumStats:
    """Statistics of a matrix's singular values σ₁ ≥ … ≥ σₘ.

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
    # all σᵢ, descending, (m,), where they were asked for
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


class ArrayMatrix:
    """A two-dimensional numpy array as a `Matrix`."""

    def __init__(self, values: np.ndarray[Any, Any]) -> None:
        self._tall = values if values.shape[0] > values.shape[1] else values.T
        self.long, self.short = self._tall.shape
        self.is_float64 = values.dtype.itemsize >= 8

    def block(self, start: int, stop: int) -> FloatArray:
        return self._tall[start:stop].T.astype(np.float64)

    def stored_block(self, start: int, stop: int) -> tuple[StoredArray, str]:
        block = self._tall[start:stop].T
        dtype = block.dtype.name if block.dtype.name in ("float16", "float32") else "float64"
        return block.astype(dtype), dtype


def spectrum_stats(
    weight: Any, *, rtol: float = DEFAULT_RTOL, method: Method = "auto", with_sigmas: bool = False, device: str | None = None
) -> SpectrumStats:
    """Measure one matrix: a 2-D numpy array or torch tensor of any float dtype, computed in float64 on the CPU or `device`.

    κ is within `rtol` where float64 can give that, and within the result's `error_bound` always. `with_sigmas` keeps all
    singular values. Raises `ScanError` on a NaN or an infinity, `ValueError` for what has not two dimensions of at least one,
    `InputError` for a device that isn't there.
    """
    if hasattr(weight, "detach"):
        weight = weight.detach().cpu()
        weight = (weight if str(weight.dtype) == "torch.float64" else weight.float()).numpy()
    values = np.asarray(weight)
    if values.ndim != 2 or values.size == 0:
        raise ValueError(f"a matrix has two dimensions of at least one; this has shape {values.shape}")
    stats = measure(ArrayMatrix(values), rtol=rtol, method=method, with_sigmas=with_sigmas, algebra=choose_algebra(device))
    return replace(stats, shape=values.shape)


def choose_algebra(device: str | None) -> Algebra:
    """BLAS and LAPACK on the CPU, or torch on `device`. Raises `InputError`."""
    if device is None:
        return HostAlgebra()
    from kappaspeech.scan.torch_algebra import TorchAlgebra, open_device

    return TorchAlgebra(open_device(device))


def measure(
    matrix: Matrix,
    *,
    rtol: float = DEFAULT_RTOL,
    method: Method = "auto",
    gram: FloatArray | None = None,
    with_sigmas: bool = False,
    algebra: Algebra | None = None,
) -> SpectrumStats:
    """Climb the ladder until κ is known to `rtol`. `gram`, where others have formed it, is overwritten. Raises `ScanError`.

    `shape` of the result is (short, long).
    """
    algebra = algebra or HostAlgebra()
    scaled = _Scaled(matrix, _find_exponent(matrix, algebra) if matrix.is_float64 else 0, algebra)
    if matrix.short == 1:
        norm = math.sqrt(sum(float(algebra.diagonal(_square(algebra, block))[0]) for block in scaled.blocks()))
        _check_finite(norm)
        return _finish(scaled, np.array([norm]), "norm", frobenius=norm, with_sigmas=with_sigmas)
    own = _sum_pieces(scaled, range(num_pieces(matrix.long))) if gram is None else algebra.from_host(gram)
    squares = algebra.diagonal(own)
    _check_finite(float(squares.sum()))
    frobenius = math.sqrt(float(squares.sum()))
    if method == "auto" and squares.min() > 0:
        stats = _measure_by_cholesky(scaled, own, squares, rtol=rtol, with_sigmas=with_sigmas)
        if stats is not None:
            return stats
    del own, gram
    sigmas = algebra.svdvals(algebra.triangularise(scaled.blocks(), scaled.short))
    return _finish(scaled, sigmas, "svd", frobenius=frobenius, with_sigmas=with_sigmas)


# ---- reading ----------------------------------------------------------------------------------------------------------


class _Scaled:
    """`matrix`·2^−exponent: squares of float64 values would over- or underflow; those of narrower formats can't."""

    def __init__(self, matrix: Matrix, exponent: int, algebra: Algebra) -> None:
        self.matrix, self.exponent, self.algebra = matrix, exponent, algebra
        self.short, self.long = matrix.short, matrix.long

    def blocks(self, start: int = 0, stop: int | None = None) -> Iterator[Any]:
        width = max(64, self.algebra.block_numbers // self.short)
        stop = self.long if stop is None else stop
        for begin in range(start, stop, width):
            yield self.algebra.block(self.matrix, begin, min(begin + width, stop), exponent=self.exponent)


def _find_exponent(matrix: Matrix, algebra: Algebra) -> int:
    """The binary exponent of the largest magnitude, exact to divide by."""
    peaks = [algebra.peak(block) for block in _Scaled(matrix, 0, algebra).blocks()]
    peak = max(peaks, key=lambda value: math.inf if math.isnan(value) else value)
    _check_finite(peak)
    return math.frexp(peak)[1] if peak > 0 else 0


def _check_finite(value: float) -> None:
    if not math.isfinite(value):
        raise ScanError("it holds NaN or infinity, so it has no singular values")


# ---- Gram, Cholesky, Lanczos --------------------------------------------------------------------------------------------


def num_pieces(long: int) -> int:
    """The number of Grams that are summed to that of a matrix with this long side."""
    return -(-long // PIECE_VECTORS)


def piece_gram(matrix: Matrix, piece: int, *, algebra: Algebra | None = None) -> FloatArray:
    """G of one piece of the long side, (m, m) in Fortran order, of which the lower triangle counts. Of narrow formats only:
    nothing is scaled."""
    assert not matrix.is_float64
    algebra = algebra or HostAlgebra()
    return algebra.to_host(_sum_pieces(_Scaled(matrix, 0, algebra), [piece]))


def _sum_pieces(scaled: _Scaled, pieces: Sequence[int]) -> Any:
    """Σ W_p·W_pᵀ over `pieces`, each summed by itself first."""
    total: Any = None
    for piece in pieces:
        begin = piece * PIECE_VECTORS
        gram = scaled.algebra.zeros(scaled.short)
        for block in scaled.blocks(begin, min(begin + PIECE_VECTORS, scaled.long)):
            scaled.algebra.add_square(block, gram)
        if total is None:
            total = gram
        else:
            total += gram
    return total


def _square(algebra: Algebra, block: Any) -> Any:
    gram = algebra.zeros(block.shape[0])
    algebra.add_square(block, gram)
    return gram


def _measure_by_cholesky(
    scaled: _Scaled, gram: Any, squares: FloatArray, *, rtol: float, with_sigmas: bool
) -> SpectrumStats | None:
    """The rungs that rest on a Cholesky factor; None where they can't reach `rtol`."""
    algebra = scaled.algebra
    triangle = algebra.cholesky(gram)
    if triangle is None or not algebra.diagonal(triangle).min() ** 2 >= 4 * scaled.short * _U * squares.max():
        return None
    frobenius = math.sqrt(float(squares.sum()))
    factor = algebra.factor([triangle])
    ends = _find_ends(factor, rtol=rtol)
    if ends is not None:
        stats = _accept_gram(scaled, factor, ends, frobenius=frobenius, rtol=rtol)
        if stats is not None:
            return _with_sigmas(scaled, stats, algebra.svdvals_by_square(triangle)) if with_sigmas else stats
    second = _second_triangle(scaled, triangle)
    if second is None:
        return None
    factor = algebra.factor([triangle, second])
    ends = _find_ends(factor, rtol=rtol)
    if ends is None:
        return None
    largest, smallest = ends
    sigmas = math.sqrt(largest.value), 1 / math.sqrt(smallest.value)
    # the second pass leaves a backward error of a few u·‖W‖, as an SVD does
    bound = _backward_error(scaled, sigmas[0] / sigmas[1]) + largest.error + smallest.error
    if bound > rtol:
        return None
    stats = _finish_ends(scaled, *sigmas, factor=factor, bound=bound, rung="cholqr2", frobenius=frobenius)
    return _with_sigmas(scaled, stats, algebra.svdvals(algebra.multiply(triangle, second))) if with_sigmas else stats


def _find_ends(factor: Factor, *, rtol: float) -> tuple[Eigenpair, Eigenpair] | None:
    """The largest eigenpairs of F·Fᵀ and of its inverse, to a fraction of `rtol`; None where rounding makes nonsense of them."""
    with np.errstate(all="ignore"):
        largest = largest_eigenpair(factor.square, factor.size, rtol=rtol / 10, max_steps=_MAX_STEPS)
        smallest = largest_eigenpair(partial(_solve_twice, factor), factor.size, rtol=rtol / 10, max_steps=_MAX_STEPS)
    numbers = (largest.value, smallest.value, largest.error, smallest.error)
    return (largest, smallest) if all(math.isfinite(number) for number in numbers) and smallest.value > 0 else None


def _solve_twice(factor: Factor, x: FloatArray) -> FloatArray:
    """(F·Fᵀ)⁻¹·x"""
    return factor.solve(factor.solve(x), transposed=True)


def _accept_gram(
    scaled: _Scaled, factor: Factor, ends: tuple[Eigenpair, Eigenpair], *, frobenius: float, rtol: float
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
        eta = _ETA_MARGIN * _estimate_eta(scaled, factor)
        if not eta < 0.5 or eta + lanczos_error > rtol:
            return None
    bound = eta + lanczos_error + _backward_error(scaled, kappa)
    if eta > rtol / 100:
        # one more inverse step clears the vector of the large end, which ‖Wᵀu‖ would weigh κ² times
        vector = _solve_twice(factor, smallest.vector)
        above = _norm_through(scaled, vector / np.linalg.norm(vector))
        sigma_min = above if above <= sigma_min * (1 + bound) else sigma_min
    return _finish_ends(scaled, sigma_max, sigma_min, factor=factor, bound=bound, rung="gram", frobenius=frobenius)


def _estimate_eta(scaled: _Scaled, factor: Factor) -> float:
    """‖L⁻¹·W·Wᵀ·L⁻ᵀ − I‖₂, from a few Lanczos steps: a pass over W each."""

    def apply(x: FloatArray) -> FloatArray:
        y = factor.solve(x, transposed=True)
        image = np.zeros(scaled.short)
        for block in scaled.blocks():
            image += scaled.algebra.weigh_twice(block, y)
        return factor.solve(image) - x

    return estimate_norm(apply, scaled.short, num_steps=_NUM_ETA_STEPS)


def _norm_through(scaled: _Scaled, vector: FloatArray) -> float:
    """‖Wᵀu‖: for a unit u near the last left singular vector, σ_min to second order, and never below it."""
    return math.sqrt(sum(float(np.sum(scaled.algebra.weigh(block, vector) ** 2)) for block in scaled.blocks()))


def _second_triangle(scaled: _Scaled, triangle: Any) -> Any | None:
    """The Cholesky factor of Y·Yᵀ with Y = L⁻¹·W; None where Y is too far from orthonormal rows for it to help."""
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


def _backward_error(scaled: _Scaled, kappa: float) -> float:
    """The relative error of κ that a backward error of a few roundings of σ₁ makes."""
    return 8 * math.sqrt(scaled.short) * _U * kappa


# ---- the result -------------------------------------------------------------------------------------------------------------


def _finish(scaled: _Scaled, sigmas: FloatArray, rung: str, *, frobenius: float, with_sigmas: bool) -> SpectrumStats:
    """The statistics of a whole spectrum, in descending order."""
    tau = max(scaled.short, scaled.long) * 2 * _U * float(sigmas[0])
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
        error_bound=_backward_error(scaled, kappa),
        rung=rung,
        sigmas=np.ldexp(sigmas, scaled.exponent) if with_sigmas else None,
    )


def _unscale(scaled: _Scaled, value: float) -> float:
    """`value` of the matrix itself. Raises `ScanError` where float64 can't hold it."""
    try:
        plain = math.ldexp(value, scaled.exponent)
    except OverflowError:
        plain = math.inf
    # what is below the least normal number has lost digits
    if math.isinf(plain) or (value > 0 and plain < sys.float_info.min):
        raise ScanError("its singular values are beyond the range of float64")
    return plain


def _finish_ends(
    scaled: _Scaled, sigma_max: float, sigma_min: float, *, factor: Factor, bound: float, rung: str, frobenius: float
) -> SpectrumStats:
    """The statistics of a matrix of full rank, from its two ends."""
    return SpectrumStats(
        shape=(scaled.short, scaled.long),
        sigma_max=_unscale(scaled, sigma_max),
        sigma_min=_unscale(scaled, sigma_min),
        zero_sigmas=0,
        log2_volume=factor.log2_volume + scaled.exponent * scaled.short,
        frobenius=_unscale(scaled, frobenius),
        error_bound=bound,
        rung=rung,
    )


def _with_sigmas(scaled: _Scaled, stats: SpectrumStats, sigmas: FloatArray) -> SpectrumStats:
    """`stats` with the whole spectrum, whose ends are those that were measured."""
    sigmas = np.clip(np.ldexp(sigmas, scaled.exponent), stats.sigma_min, stats.sigma_max)
    sigmas[0], sigmas[-1] = stats.sigma_max, stats.sigma_min
    return replace(stats, sigmas=sigmas)
