"""Stored number formats: their width, their rounding, and their values as float64.

numpy has no bfloat16 and no float8; both are read as bit patterns and widened exactly.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]
SingleArray = NDArray[np.float32]
StoredArray = NDArray[Any]


@dataclass(frozen=True)
class StoredDtype:
    """`array` is the numpy dtype that its bytes are read as; `unit_roundoff` the largest relative error of storing a number."""

    name: str
    array: str
    unit_roundoff: float

    @property
    def num_bytes(self) -> int:
        return int(np.dtype(self.array).itemsize)


# Floating formats that can be ranked.
FLOATS = {
    dtype.name: dtype
    for dtype in (
        StoredDtype("float64", "<f8", 2.0**-53),
        StoredDtype("float32", "<f4", 2.0**-24),
        StoredDtype("float16", "<f2", 2.0**-11),
        StoredDtype("bfloat16", "<u2", 2.0**-8),
        StoredDtype("float8_e4m3fn", "u1", 2.0**-4),
        StoredDtype("float8_e5m2", "u1", 2.0**-3),
    )
}
# Codes that mean numbers only together with scales.
CODES = {"float8_e4m3fn", "float8_e5m2", "int8"}


def widen(stored: StoredArray, dtype: str) -> FloatArray:
    """`stored` values as float64, exactly; the array keeps its memory order."""
    if dtype == "bfloat16":
        return widen_bfloat16(stored).astype(np.float64)
    if dtype == "float8_e8m0fnu":
        powers = np.ldexp(1.0, np.arange(256) - 127)
        powers[255] = np.nan
        scales: FloatArray = powers[stored]
        return scales
    if dtype in _FLOAT8_VALUES:
        values: FloatArray = _FLOAT8_VALUES[dtype][stored]
        return values
    return stored.astype(np.float64)


def widen_bfloat16(stored: StoredArray) -> SingleArray:
    """bfloat16's bits as float32, exactly; the array keeps its memory order."""
    wide = stored.astype(np.uint32)
    np.left_shift(wide, 16, out=wide)
    return wide.view(np.float32)


def _float8_values(exponent_bits: int, *, has_infinity: bool) -> FloatArray:
    """The 256 values of an 8-bit float, by bit pattern (Micikevicius et al. 2022, table 1)."""
    mantissa_bits = 7 - exponent_bits
    bias = 2 ** (exponent_bits - 1) - 1
    codes = np.arange(256)
    exponent = (codes >> mantissa_bits) & (2**exponent_bits - 1)
    mantissa = (codes & (2**mantissa_bits - 1)) / 2**mantissa_bits
    magnitude = np.where(exponent == 0, np.ldexp(mantissa, 1 - bias), np.ldexp(1 + mantissa, exponent - bias))
    if has_infinity:
        top = exponent == 2**exponent_bits - 1
        magnitude = np.where(top, np.where(mantissa == 0, np.inf, np.nan), magnitude)
    else:
        magnitude[codes & 127 == 127] = np.nan
    values: FloatArray = np.where(codes < 128, magnitude, -magnitude)
    return values


_FLOAT8_VALUES = {
    "float8_e4m3fn": _float8_values(4, has_infinity=False),
    "float8_e5m2": _float8_values(5, has_infinity=True),
}
