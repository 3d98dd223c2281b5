"""The operations on a matrix that the scan's methods need, by BLAS and LAPACK on the CPU. `torch_algebra` has them on a device.

Dimension letters: m the short side, b the vectors of the long side that are read at a time. Arrays have the algebra's own type
and stay where it computes; what comes to the host says so, because on a device it waits for all that was asked before.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import blas, lapack

from kappaspeech.tensor_files.dtypes import FloatArray, SingleArray, StoredArray, widen_bfloat16

_QR_BLOCK = 32


class Matrix(Protocol):
    """A matrix whose short side is `short` and long side `long`, read along the long side."""

    short: int
    long: int
    is_float64: bool

    def block(self, start: int, stop: int) -> FloatArray:
        """Vectors `start` to `stop` of the long side: (short, stop − start), float64, in C or Fortran order."""

    def stored_block(self, start: int, stop: int) -> tuple[StoredArray, str]:
        """The same as `block`, in the narrowest dtype that holds it exactly: the numbers' bits, and the name of their dtype."""


class Factor(Protocol):
    """A product F = L₁·…·L_k of lower triangles whose singular values are a matrix's, or nearly."""

    size: int

    @property
    def log2_volume(self) -> float:
        """Σ log₂ σᵢ, on the host."""

    def solve(self, x: Any, *, transposed: bool = False) -> Any:
        """F⁻¹·x, or F⁻ᵀ·x."""

    def square_times(self, x: Any) -> Any:
        """F·Fᵀ·x"""


class Vectors(Protocol):
    """Vectors on the way between the host and where they are computed with. They know +, *, @, .T and slices."""

    def vector(self, values: FloatArray) -> Any:
        """A vector of the host's."""

    def empty(self, rows: int, size: int) -> Any:
        """An array (rows, size) of anything."""

    def to_numpy(self, array: Any) -> FloatArray:
        """A vector, or a few, on the host."""


class Algebra(Vectors, Protocol):
    """The operations. Arrays of type Any are the algebra's own: `Gram` (m, m), whose lower triangle counts, `block` (m, b)."""

    # numbers in a block
    block_numbers: int
    # products of float32 are as exact as its roundoff says
    has_single: bool
    # a matrix of so many numbers is kept as it was fetched while it is measured, for all passes over it
    kept_numbers: int

    def fetch(self, matrix: Matrix, start: int, stop: int) -> Any:
        """The numbers that `block` needs of a matrix, where it computes."""

    def block(self, fetched: Any, *, exponent: int) -> Any:
        """A fetched block times 2^−exponent, in float64."""

    def peak(self, block: Any) -> float:
        """The largest magnitude, on the host; NaN or infinite if there is one."""

    def to_single(self, fetched: Any) -> Any:
        """A fetched block in float32, rounded if it has more digits."""

    def fetch_single(self, matrix: Matrix, start: int, stop: int) -> Any:
        """The same of a block that has not been fetched."""

    def zeros(self, size: int, *, is_single: bool = False) -> Any:
        """An empty Gram, of float32 if `is_single`."""

    def add_square(self, block: Any, gram: Any) -> None:
        """G += B·Bᵀ, in the numbers that both have."""

    def row_squares(self, block: Any) -> Any:
        """The diagonal of B·Bᵀ, of a block of float32, summed in float64."""

    def set_diagonal(self, gram: Any, values: Any) -> None:
        """Put a diagonal of float64 into a Gram."""

    def widen(self, square: Any) -> Any:
        """A Gram or triangle of float32 in float64."""

    def to_host(self, gram: Any) -> NDArray[Any]:
        """A Gram as ranks send it to each other."""

    def from_host(self, gram: NDArray[Any]) -> Any:
        """A Gram as ranks send it to each other, in the algebra's own type; the given one may be overwritten."""

    def times(self, gram: Any, vector: Any) -> Any:
        """G·v"""

    def diagonal(self, square: Any) -> FloatArray:
        """The diagonal of a Gram or triangle, on the host."""

    def cholesky(self, gram: Any) -> Any | None:
        """L of G = L·Lᵀ in the numbers of G and in its place; None if G isn't positive definite."""

    def factor(self, triangles: list[Any]) -> Factor:
        """The product of triangles."""

    def solve_block(self, triangle: Any, block: Any) -> Any:
        """L⁻¹·B"""

    def triangularise(self, blocks: Iterable[Any], size: int) -> Any:
        """R of Wᵀ = Q·R, from the blocks of W; Householder's, so backward stable."""

    def svdvals(self, triangle: Any) -> FloatArray:
        """All singular values of a triangle, descending, on the host; backward stable."""

    def svdvals_by_square(self, triangle: Any) -> FloatArray:
        """The same to 2⁻⁵³·κ² of each, by the eigenvalues of LᵀL: several times faster. Overwrites L."""

    def multiply(self, left: Any, right: Any) -> Any:
        """L₁·L₂ of two lower triangles."""


class HostFactor:
    """`Factor` by BLAS's triangular solves."""

    def __init__(self, triangles: list[FloatArray]) -> None:
        self.triangles = triangles
        self.size = len(triangles[0])
        self.log2_volume = math.fsum(math.fsum(np.log2(np.diagonal(triangle))) for triangle in triangles)

    def solve(self, x: FloatArray, *, transposed: bool = False) -> FloatArray:
        for triangle in reversed(self.triangles) if transposed else self.triangles:
            x = blas.dtrsv(triangle, x, lower=1, trans=int(transposed))
        return x

    def square_times(self, x: FloatArray) -> FloatArray:
        for triangle in self.triangles:
            x = blas.dtrmv(triangle, x, lower=1, trans=1)
        for triangle in reversed(self.triangles):
            x = blas.dtrmv(triangle, x, lower=1)
        return x


class HostAlgebra:
    """`Algebra` by scipy's BLAS and LAPACK. Squares are in Fortran order, so that nothing is copied."""

    block_numbers = 1 << 20
    kept_numbers = block_numbers
    has_single = True

    def vector(self, values: FloatArray) -> FloatArray:
        return values

    def empty(self, rows: int, size: int) -> FloatArray:
        return np.empty((rows, size))

    def to_numpy(self, array: FloatArray) -> FloatArray:
        return array

    def fetch(self, matrix: Matrix, start: int, stop: int) -> FloatArray:
        return matrix.block(start, stop)

    def block(self, fetched: FloatArray, *, exponent: int) -> FloatArray:
        return np.ldexp(fetched, -exponent) if exponent else fetched

    def peak(self, block: FloatArray) -> float:
        return float(np.abs(block).max())

    def to_single(self, fetched: FloatArray) -> SingleArray:
        # whoever asked sees that a number or a square is beyond float32
        with np.errstate(over="ignore"):
            return fetched.astype(np.float32)

    def fetch_single(self, matrix: Matrix, start: int, stop: int) -> SingleArray:
        stored, dtype = matrix.stored_block(start, stop)
        return widen_bfloat16(stored) if dtype == "bfloat16" else self.to_single(stored)

    def zeros(self, size: int, *, is_single: bool = False) -> NDArray[Any]:
        return np.zeros((size, size), np.float32 if is_single else np.float64, order="F")

    def add_square(self, block: NDArray[Any], gram: NDArray[Any]) -> None:
        # syrk does half the flops of a product; the transposed view spares the copy that a C-ordered argument would cost
        syrk = blas.ssyrk if gram.dtype == np.float32 else blas.dsyrk
        if block.flags.f_contiguous:
            syrk(1.0, block, beta=1.0, c=gram, trans=0, lower=1, overwrite_c=1)
        else:
            syrk(1.0, block.T, beta=1.0, c=gram, trans=1, lower=1, overwrite_c=1)

    def row_squares(self, block: SingleArray) -> FloatArray:
        with np.errstate(over="ignore"):
            squares: FloatArray = np.add.reduce(block * block, axis=1, dtype=np.float64)
        return squares

    def set_diagonal(self, gram: SingleArray, values: FloatArray) -> None:
        np.fill_diagonal(gram, self.to_single(values))

    def widen(self, square: SingleArray) -> FloatArray:
        return square.astype(np.float64)

    def to_host(self, gram: NDArray[Any]) -> NDArray[Any]:
        return gram

    def from_host(self, gram: NDArray[Any]) -> NDArray[Any]:
        return gram

    def times(self, gram: FloatArray, vector: FloatArray) -> FloatArray:
        product: FloatArray = blas.dsymv(1.0, gram, vector, lower=1)
        return product

    def diagonal(self, square: FloatArray) -> FloatArray:
        return np.diagonal(square).copy()

    def cholesky(self, gram: NDArray[Any]) -> NDArray[Any] | None:
        potrf = lapack.spotrf if gram.dtype == np.float32 else lapack.dpotrf
        triangle, failed_at = potrf(gram, lower=1, clean=0, overwrite_a=1)
        return None if failed_at else triangle

    def factor(self, triangles: list[FloatArray]) -> HostFactor:
        return HostFactor(triangles)

    def solve_block(self, triangle: FloatArray, block: FloatArray) -> FloatArray:
        solved: FloatArray = blas.dtrsm(1.0, triangle, block, lower=1)
        return solved

    def triangularise(self, blocks: Iterable[FloatArray], size: int) -> FloatArray:
        upper = np.zeros((size, size), order="F")
        for block in blocks:
            tall = np.array(block.T, order="F")
            upper, _, _, info = lapack.dtpqrt(0, min(_QR_BLOCK, size), upper, tall, overwrite_a=1, overwrite_b=1)
            assert info == 0
        return np.triu(upper)

    def svdvals(self, triangle: FloatArray) -> FloatArray:
        # numpy's lets other threads run meanwhile; scipy's doesn't, and the ranks' heartbeat would stop
        return np.asarray(np.linalg.svd(triangle, compute_uv=False), dtype=np.float64)

    def svdvals_by_square(self, triangle: FloatArray) -> FloatArray:
        square, info = lapack.dlauum(triangle, lower=1, overwrite_c=1)
        assert info == 0
        # eigvalsh reads the lower triangle alone
        return np.sqrt(np.maximum(np.linalg.eigvalsh(square, UPLO="L"), 0))[::-1]

    def multiply(self, left: FloatArray, right: FloatArray) -> FloatArray:
        product: FloatArray = blas.dtrmm(1.0, left, np.asfortranarray(np.tril(right)), lower=1, overwrite_b=1)
        return product
