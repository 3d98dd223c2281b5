"""A matrix as blocks along its long side, scaled so that squares stay within float64, and its Gram matrix W·Wᵀ.

Dimension letters: m the short side.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

from kappaspeech.errors import ScanError
from kappaspeech.scan.algebra import Algebra, HostAlgebra, Matrix
from kappaspeech.tensor_files.dtypes import FloatArray

# Grams of this many long-side vectors are summed apart and then in order, so the sum has the same bits on any rank.
PIECE_VECTORS = 1 << 14


class ScaledMatrix:
    """`matrix`·2^−exponent: squares of float64 values would over- or underflow; those of narrower formats can't."""

    def __init__(self, matrix: Matrix, exponent: int, algebra: Algebra) -> None:
        self.matrix, self.exponent, self.algebra = matrix, exponent, algebra
        self.short, self.long = matrix.short, matrix.long

    def blocks(self, start: int = 0, stop: int | None = None) -> Iterator[Any]:
        """The algebra's blocks of long-side vectors `start` to `stop`."""
        width = max(64, self.algebra.block_numbers // self.short)
        stop = self.long if stop is None else stop
        for begin in range(start, stop, width):
            yield self.algebra.block(self.matrix, begin, min(begin + width, stop), exponent=self.exponent)


def find_exponent(matrix: Matrix, algebra: Algebra) -> int:
    """The binary exponent of the largest magnitude; division by its power of two is exact."""
    peaks = [algebra.peak(block) for block in ScaledMatrix(matrix, 0, algebra).blocks()]
    peak = max(peaks, key=lambda value: math.inf if math.isnan(value) else value)
    check_finite(peak)
    return math.frexp(peak)[1] if peak > 0 else 0


def check_finite(value: float) -> None:
    """Raise `ScanError` for a value that a NaN or an infinity among the weights has made."""
    if not math.isfinite(value):
        raise ScanError("it holds NaN or infinity, so it has no singular values")


def num_pieces(long: int) -> int:
    """The number of Grams that are summed to that of a matrix with this long side."""
    return -(-long // PIECE_VECTORS)


def piece_gram(matrix: Matrix, piece: int, *, algebra: Algebra | None = None) -> FloatArray:
    """G of one piece of the long side, (m, m) in Fortran order; the lower triangle counts. For narrow formats only: nothing is
    scaled."""
    assert not matrix.is_float64
    algebra = algebra or HostAlgebra()
    return algebra.to_host(sum_pieces(ScaledMatrix(matrix, 0, algebra), [piece]))


def sum_pieces(scaled: ScaledMatrix, pieces: Sequence[int]) -> Any:
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


def square_of(algebra: Algebra, block: Any) -> Any:
    """B·Bᵀ of one block."""
    gram = algebra.zeros(block.shape[0])
    algebra.add_square(block, gram)
    return gram
