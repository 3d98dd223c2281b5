"""A matrix as blocks along its long side, scaled so that squares stay within float64, and its Gram matrix W·Wᵀ.

Dimension letters: m the short side.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kappaspeech.errors import ScanError
from kappaspeech.scan.algebra import Algebra, HostAlgebra, Matrix

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
        if self._is_kept:
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

    def single_blocks(self, start: int, stop: int) -> Iterator[Any]:
        """The blocks in float32, unscaled; `start` begins a piece."""
        for begin, end in self._cuts(start, stop):
            if self._is_kept:
                yield self.algebra.to_single(self._fetch(begin, end))
            else:
                yield self.algebra.fetch_single(self.matrix, begin, end)

    @property
    def _is_kept(self) -> bool:
        return self.short * self.long <= self.algebra.kept_numbers

    def _fetch(self, start: int, stop: int) -> Any:
        if start in self._kept:
            return self._kept[start]
        fetched = self.algebra.fetch(self.matrix, start, stop)
        if self._is_kept:
            self._kept[start] = fetched
        return fetched


def check_finite(value: float) -> None:
    """Raise `ScanError` for a value that a NaN or an infinity among the weights has made."""
    if not math.isfinite(value):
        raise ScanError("it holds NaN or infinity, so it has no singular values")


def num_pieces(long: int) -> int:
    """The number of Grams that are summed to that of a matrix with this long side."""
    return -(-long // PIECE_VECTORS)


def piece_gram(matrix: Matrix, piece: int, *, algebra: Algebra | None = None, is_single: bool = False) -> NDArray[Any]:
    """G of one piece of the long side, (m, m) in Fortran order; the lower triangle counts. For narrow formats only: nothing is
    scaled."""
    assert not matrix.is_float64
    algebra = algebra or HostAlgebra()
    return algebra.to_host(sum_pieces(ScaledMatrix(matrix, algebra), [piece], is_single=is_single))


def sum_pieces(scaled: ScaledMatrix, pieces: Sequence[int], *, is_single: bool = False) -> Any:
    """Σ W_p·W_pᵀ over `pieces`, each summed by itself first; in float32 if `is_single`."""
    total: Any = None
    for piece in pieces:
        begin, end = piece * PIECE_VECTORS, min((piece + 1) * PIECE_VECTORS, scaled.long)
        gram = _single_gram(scaled, begin, end) if is_single else _gram(scaled, begin, end)
        if total is None:
            total = gram
        else:
            with np.errstate(over="ignore"):
                total += gram
    return total


def _gram(scaled: ScaledMatrix, begin: int, end: int) -> Any:
    gram = scaled.algebra.zeros(scaled.short)
    for block in scaled.blocks(begin, end):
        scaled.algebra.add_square(block, gram)
    return gram


def _single_gram(scaled: ScaledMatrix, begin: int, end: int) -> Any:
    """A Gram in float32, but for its diagonal: sums of squares only grow, so that float32 rounds them down by some 10⁻⁶, which
    the volume adds up over all singular values."""
    algebra = scaled.algebra
    gram, squares = algebra.zeros(scaled.short, is_single=True), 0.0
    for block in scaled.single_blocks(begin, end):
        algebra.add_square(block, gram)
        squares = squares + algebra.row_squares(block)
    algebra.set_diagonal(gram, squares)
    return gram


def square_of(algebra: Algebra, block: Any) -> Any:
    """B·Bᵀ of one block."""
    gram = algebra.zeros(block.shape[0])
    algebra.add_square(block, gram)
    return gram
