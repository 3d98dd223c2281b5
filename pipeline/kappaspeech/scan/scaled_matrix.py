"""A matrix as blocks along its long side, scaled so that squares stay within float64, and its Gram matrix W·Wᵀ.

Dimension letters: m the short side.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any

from kappaspeech.errors import ScanError
from kappaspeech.scan.algebra import Algebra, HostAlgebra, Matrix
from kappaspeech.tensor_files.dtypes import FloatArray

# Grams of this many long-side vectors are summed apart and then in order, so the sum has the same bits on any rank.
PIECE_VECTORS = 1 << 14


class ScaledMatrix:
    """`matrix`·2^−exponent: squares of float64 values would over- or underflow; those of narrower formats can't."""

    def __init__(self, matrix: Matrix, algebra: Algebra) -> None:
        self.matrix, self.algebra = matrix, algebra
        self.short, self.long = matrix.short, matrix.long
        self._kept: dict[int, Any] = {}

    @cached_property
    def exponent(self) -> int:
        """The binary exponent of the largest magnitude; division by its power of two is exact. Raises `ScanError`."""
        if not self.matrix.is_float64:
            return 0
        peaks = [self.algebra.peak(block) for block in self._blocks(0, self.long, exponent=0)]
        peak = max(peaks, key=lambda value: math.inf if math.isnan(value) else value)
        check_finite(peak)
        return math.frexp(peak)[1] if peak > 0 else 0

    def blocks(self, start: int = 0, stop: int | None = None) -> Iterator[Any]:
        """The algebra's blocks of long-side vectors `start` to `stop`; `start` begins a piece."""
        return self._blocks(start, self.long if stop is None else stop, exponent=self.exponent)

    def fetch(self) -> None:
        """Bring the matrix to where it is computed with, if the algebra keeps it there. Raises `OSError`."""
        if self.short * self.long <= self.algebra.kept_numbers:
            for start, stop in self._cuts(0, self.long):
                self._fetch(start, stop)

    def _blocks(self, start: int, stop: int, *, exponent: int) -> Iterator[Any]:
        for begin, end in self._cuts(start, stop):
            yield self.algebra.block(self._fetch(begin, end), exponent=exponent)

    def _cuts(self, start: int, stop: int) -> Iterator[tuple[int, int]]:
        width = max(64, self.algebra.block_numbers // self.short)
        for piece in range(start, stop, PIECE_VECTORS):
            end = min(piece + PIECE_VECTORS, stop)
            yield from ((begin, min(begin + width, end)) for begin in range(piece, end, width))

    def _fetch(self, start: int, stop: int) -> Any:
        if start in self._kept:
            return self._kept[start]
        fetched = self.algebra.fetch(self.matrix, start, stop)
        if self.short * self.long <= self.algebra.kept_numbers:
            self._kept[start] = fetched
        return fetched


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
    return algebra.to_host(sum_pieces(ScaledMatrix(matrix, algebra), [piece]))


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
