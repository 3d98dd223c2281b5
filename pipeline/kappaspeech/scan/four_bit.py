"""bitsandbytes' 4-bit weights as the numbers that it computes with: QLoRA's (arXiv:2305.14314), NF4 or FP4.

Two codes lie in a byte, the first in the high half. A code means a number of a table of 16, times the largest magnitude of its
block; with double quantisation these magnitudes are 8-bit codes themselves. A weight X has X.absmax, X.quant_map,
X.quant_state.bitsandbytes__nf4 (JSON) and, if doubly quantised, X.nested_absmax and X.nested_quant_map beside it.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import Annotated, Literal, Protocol

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from kappaspeech.errors import CheckpointError
from kappaspeech.outside import describe
from kappaspeech.tensor_files.dtypes import FLOATS, StoredArray, widen

_STATES = (".quant_state.bitsandbytes__nf4", ".quant_state.bitsandbytes__fp4")
_NUM_CODES, _NUM_NESTED_CODES = 16, 256
_MOST_STATE_BYTES = 4096
Float32Array = NDArray[np.float32]
Size = Annotated[int, Field(gt=0, lt=2**31)]


class Stored(Protocol):
    """A checkpoint's tensors."""

    def __contains__(self, name: str) -> bool: ...
    def read(self, name: str, start: int, stop: int) -> StoredArray: ...
    def read_bytes(self, name: str, offset: int, size: int) -> bytes: ...
    def num_bytes_of(self, name: str) -> int: ...
    def shape_of(self, name: str) -> tuple[int, ...]: ...
    def dtype_of(self, name: str) -> str: ...


class _State(BaseModel):
    """The JSON beside the codes; what isn't needed may be there too."""

    model_config = ConfigDict(strict=True, allow_inf_nan=False, frozen=True)

    quant_type: Literal["nf4", "fp4"]
    blocksize: Size
    dtype: Literal["bfloat16", "float16", "float32"]
    shape: Annotated[list[Size], Field(min_length=2, max_length=3)]
    nested_blocksize: Size | None = None
    nested_offset: float = 0.0


@dataclass(frozen=True)
class FourBitWeight:
    """The weight whose codes lie in the tensor `name`: its own `shape`, and the `dtype` to which bitsandbytes rounds it."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    blocksize: int
    nested_blocksize: int | None
    nested_offset: float
    state: str

    @property
    def helpers(self) -> tuple[str, ...]:
        """The names of the tensors that its codes mean nothing without."""
        nested = ("nested_absmax", "nested_quant_map") if self.nested_blocksize else ()
        return (*(f"{self.name}.{part}" for part in ("absmax", "quant_map", *nested)), self.state)

    @property
    def num_blocks(self) -> int:
        return -(-math.prod(self.shape) // self.blocksize)

    def read(self, checkpoint: Stored, start: int, stop: int) -> StoredArray:
        """Elements `start` to `stop` of the flattened weight, in the bits of `dtype`. Raises `OSError`."""
        first, last = start // 2, -(-stop // 2)
        packed = np.frombuffer(checkpoint.read_bytes(self.name, first, last - first), np.uint8)
        codes = np.stack((packed >> 4, packed & 15), axis=1).reshape(-1)[start - 2 * first : stop - 2 * first]
        values = read_floats(checkpoint, f"{self.name}.quant_map", 0, _NUM_CODES)[codes]
        begin, end = start // self.blocksize, -(-stop // self.blocksize)
        # a product of float32, rounded once, as bitsandbytes takes it
        values *= self._read_magnitudes(checkpoint, begin, end)[np.arange(start, stop) // self.blocksize - begin]
        return round_to(values, self.dtype)

    def _read_magnitudes(self, checkpoint: Stored, begin: int, end: int) -> Float32Array:
        absmax = f"{self.name}.absmax"
        if self.nested_blocksize is None:
            return read_floats(checkpoint, absmax, begin, end)
        codes = checkpoint.read(absmax, begin, end)
        first = begin // self.nested_blocksize
        scales = read_floats(checkpoint, f"{self.name}.nested_absmax", first, -(-end // self.nested_blocksize))
        table = read_floats(checkpoint, f"{self.name}.nested_quant_map", 0, _NUM_NESTED_CODES)
        magnitudes = table[codes] * scales[np.arange(begin, end) // self.nested_blocksize - first]
        return magnitudes + np.float32(self.nested_offset)


def find_four_bit(checkpoint: Stored, name: str) -> FourBitWeight | None:
    """The 4-bit weight whose codes are the tensor `name`; None if it is none, or if what lies beside it doesn't fit.

    Raises `CheckpointError` if it can't be read.
    """
    state = next((name + suffix for suffix in _STATES if name + suffix in checkpoint), None)
    if state is None or checkpoint.num_bytes_of(state) > _MOST_STATE_BYTES:
        return None
    try:
        content = json.loads(checkpoint.read_bytes(state, 0, checkpoint.num_bytes_of(state)))
        found = _State.model_validate(content)
    except OSError as error:
        raise CheckpointError(f"{state} can't be read: {describe(error)}.") from error
    except (ValueError, RecursionError, ValidationError):
        return None
    weight = FourBitWeight(
        name, tuple(found.shape), found.dtype, found.blocksize, found.nested_blocksize, found.nested_offset, state
    )
    return weight if _fits(checkpoint, weight) else None


def _fits(checkpoint: Stored, weight: FourBitWeight) -> bool:
    """True if every tensor beside the codes is there, of the size that they ask for."""
    nested = weight.nested_blocksize
    sizes = {"absmax": weight.num_blocks, "quant_map": _NUM_CODES}
    sizes |= {"nested_absmax": -(-weight.num_blocks // nested), "nested_quant_map": _NUM_NESTED_CODES} if nested else {}
    for part, size in sizes.items():
        name = f"{weight.name}.{part}"
        if name not in checkpoint or math.prod(checkpoint.shape_of(name)) != size:
            return False
        is_code = nested is not None and part == "absmax"
        if checkpoint.dtype_of(name) != "uint8" if is_code else checkpoint.dtype_of(name) not in FLOATS:
            return False
    return checkpoint.num_bytes_of(weight.name) == -(-math.prod(weight.shape) // 2)


def read_floats(checkpoint: Stored, name: str, start: int, stop: int) -> Float32Array:
    """Elements of a tensor of floats. Raises `OSError`."""
    return widen(checkpoint.read(name, start, stop), checkpoint.dtype_of(name)).astype(np.float32)


def round_to(values: Float32Array, dtype: str) -> StoredArray:
    """float32 values in the bits of `dtype`, to the nearest, ties to even."""
    if dtype != "bfloat16":
        return values.astype(FLOATS[dtype].array)
    bits = values.view(np.uint32)
    rounded: StoredArray = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype("<u2")
    # a carry would turn a NaN into an infinity or a zero
    rounded[np.isnan(values)] = 0x7FC0
    return rounded
