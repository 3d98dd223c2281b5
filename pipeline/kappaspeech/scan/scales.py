"""The scales of quantised weights: one for the tensor, one a row, or one a block of rows and columns."""

from __future__ import annotations

import math

import numpy as np

from kappaspeech.tensor_files.dtypes import FloatArray

# DeepSeek's block first: if a cut last block leaves the width open, it is this one.
_BLOCK_WIDTHS = (128, 32, 64, 256, 512)


def scale_blocks(shape: tuple[int, ...], scales: tuple[int, ...]) -> tuple[int, int] | None:
    """Rows and columns of `shape` that one scale covers; None if scales of that shape are ambiguous."""
    rows, columns = shape
    if math.prod(scales) == 1:
        return rows, columns
    if scales == (rows,):
        return 1, columns
    if len(scales) != 2:
        return None
    widths = tuple(_block_width(size, count) for size, count in zip(shape, scales, strict=True))
    return None if 0 in widths else (widths[0], widths[1])


def _block_width(size: int, count: int) -> int:
    """The width that cuts `size` into `count` blocks, the last one perhaps short; 0 if none does."""
    if count in (1, size):
        return size // count
    even = (size // count,) if count and size % count == 0 else ()
    return next((width for width in (*_BLOCK_WIDTHS, *even) if -(-size // width) == count), 0)


class Scales:
    """`values` spread over a matrix of `shape`."""

    def __init__(self, values: FloatArray, shape: tuple[int, int]) -> None:
        block = scale_blocks(shape, values.shape)
        assert block is not None, f"{values.shape} don't scale {shape}"
        self._values = values.reshape(-(-shape[0] // block[0]), -(-shape[1] // block[1]))
        self._block = block

    def of(self, rows: slice, columns: slice) -> FloatArray:
        """The factor of each element of a part of the matrix."""
        row_places = np.arange(rows.start, rows.stop) // self._block[0]
        column_places = np.arange(columns.start, columns.stop) // self._block[1]
        spread: FloatArray = self._values[np.ix_(row_places, column_places)]
        return spread
