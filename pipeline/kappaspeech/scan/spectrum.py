"""One matrix's singular spectrum: its two ends, its volume, and how exact they are. Pure maths.

Dimension letters: m the short side, n the long side, b the vectors read at a time. A matrix is only ever seen as blocks
(m, b) along its long side, so memory is m² and not m·n. Methods, from the fastest to the surest ("rungs"):

single     as gram, but in float32 up to L; a pass over W in float64 measures the vectors that this finds. Of long matrices alone.
gram      G = W·Wᵀ summed block by block, Cholesky G = L·Lᵀ, Lanczos on L·Lᵀ and its inverse, ‖Wᵀu‖ for the small end.
cholqr2   as gram, but of Y = L⁻¹·W, whose own factor L₂ mends what the first lost: W = L·L₂·Q (Yamamoto et al. 2015).
svd       Householder QR of Wᵀ block by block, then LAPACK's SVD of the triangle: backward stable for any matrix.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from kappaspeech.scan.algebra import Algebra, HostAlgebra, Matrix
from kappaspeech.scan.cholesky import measure_by_cholesky
from kappaspeech.scan.scaled_matrix import ScaledMatrix, check_finite, num_pieces, square_of, sum_pieces
from kappaspeech.scan.single_precision import measure_in_single, suits_single
from kappaspeech.scan.statistics import SpectrumStats, finish
from kappaspeech.tensor_files.dtypes import FloatArray, StoredArray

Method = Literal["auto", "svd"]
DEFAULT_RTOL = 1e-6


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

    κ is within `rtol` if float64 can give that, and within the result's `error_bound` always. `with_sigmas` keeps all singular
    values. Raises `ScanError` on a NaN or an infinity, `ValueError` for an array without two dimensions of at least one or
    of complex numbers, `InputError` for a device that isn't there.
    """
    if hasattr(weight, "detach"):
        weight = weight.detach().cpu()
        is_kept = weight.is_complex() or str(weight.dtype) == "torch.float64"
        weight = (weight if is_kept else weight.float()).resolve_conj().numpy()
    values = np.asarray(weight)
    if np.iscomplexobj(values):
        raise ValueError(f"a matrix of real numbers is expected; this is {values.dtype}")
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
    gram: NDArray[Any] | None = None,
    with_sigmas: bool = False,
    algebra: Algebra | None = None,
) -> SpectrumStats:
    """Climb the ladder until κ is known to `rtol`. `gram`, if others have formed it, is overwritten; it is of float32 if
    `tries_single`. Raises `ScanError`.

    `shape` of the result is (short, long).
    """
    scaled = ScaledMatrix(matrix, algebra or HostAlgebra())
    return measure_scaled(scaled, rtol=rtol, method=method, gram=gram, with_sigmas=with_sigmas)


def tries_single(matrix: Matrix, algebra: Algebra, *, method: Method, with_sigmas: bool) -> bool:
    """True if a matrix's Gram is formed in float32 first."""
    return method == "auto" and not with_sigmas and algebra.has_single and suits_single(matrix)


def measure_scaled(
    scaled: ScaledMatrix, *, rtol: float, method: Method, gram: NDArray[Any] | None = None, with_sigmas: bool = False
) -> SpectrumStats:
    """`measure` of a matrix that may have been fetched already. Raises `ScanError`."""
    algebra = scaled.algebra
    if scaled.short == 1:
        norm = math.sqrt(sum(float(algebra.diagonal(square_of(algebra, block))[0]) for block in scaled.blocks()))
        check_finite(norm)
        return finish(scaled, np.array([norm]), "norm", frobenius=norm, with_sigmas=with_sigmas)
    own = None if gram is None else algebra.from_host(gram)
    del gram
    if tries_single(scaled.matrix, algebra, method=method, with_sigmas=with_sigmas):
        own = sum_pieces(scaled, range(num_pieces(scaled.long)), is_single=True) if own is None else own
        stats = measure_in_single(scaled, own, rtol=rtol)
        if stats is not None:
            return stats
        own = None
    if own is None:
        own = sum_pieces(scaled, range(num_pieces(scaled.long)))
    squares = algebra.diagonal(own)
    check_finite(float(squares.sum()))
    frobenius = math.sqrt(float(squares.sum()))
    if method == "auto" and squares.min() > 0:
        stats = measure_by_cholesky(scaled, own, squares, rtol=rtol, with_sigmas=with_sigmas)
        if stats is not None:
            return stats
    del own
    sigmas = algebra.svdvals(algebra.triangularise(scaled.blocks(), scaled.short))
    return finish(scaled, sigmas, "svd", frobenius=frobenius, with_sigmas=with_sigmas)
