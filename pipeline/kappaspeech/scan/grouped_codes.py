"""GPTQ's and AWQ's weights as the numbers that their packages compute with: small integers, of which groups of inputs share a
scale and a zero point, W = scale·(code − zero).

A module X has X.qweight, X.qzeros and X.scales, and with GPTQ X.g_idx, the group of each input. Codes lie one behind the other,
the lowest first, in words of 32 bits: GPTQ's down the inputs, (inputs·bits/32, outputs), AWQ's along the outputs in an order of
its own, (inputs, outputs/8); zero points along the outputs in both. GPTQ's first format keeps zero − 1 (AutoGPTQ 0.7.1
nn_modules/qlinear/qlinear_cuda.py, AutoAWQ 0.2.9 utils/packing_utils.py; GPTQModel names the formats in config.json).

I inputs · O outputs · G groups
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from kappaspeech.errors import CheckpointError
from kappaspeech.outside import describe
from kappaspeech.scan.four_bit import Float32Array, Stored, read_floats, round_to
from kappaspeech.tensor_files.dtypes import StoredArray

_CODES = ".qweight"
_WORD_BITS = 32
_SCALE_DTYPES = ("float16", "bfloat16", "float32")
_GPTQ_BITS = (2, 3, 4, 8)
_AWQ_BITS = 4
# the place in a word of each of eight neighbours
_AWQ_PLACES = (0, 4, 1, 5, 2, 6, 3, 7)
# a format of GPTQ → what is added to its zero points
_GPTQ_FORMATS = {"gptq": 1, "gptq_v2": 0}
# no layer has more inputs, and each has an entry in a table
_MOST_INPUTS = 1 << 26
Words = NDArray[np.uint32]
Codes = NDArray[np.int32]


@dataclass(frozen=True)
class GroupedWeight:
    """The weight (outputs, inputs) of a `module`, and the `dtype` to which its package rounds it."""

    module: str
    shape: tuple[int, int]
    dtype: str
    bits: int
    layout: Literal["gptq", "awq"]
    zero_offset: int
    group_size: int
    has_table: bool

    @property
    def name(self) -> str:
        """The weight's name in a checkpoint that isn't quantised."""
        return f"{self.module}.weight"

    @property
    def codes(self) -> str:
        return self.module + _CODES

    @property
    def helpers(self) -> tuple[str, ...]:
        """The names of the tensors that its codes mean nothing without."""
        return (f"{self.module}.qzeros", f"{self.module}.scales", *([f"{self.module}.g_idx"] if self.has_table else []))

    def read(self, checkpoint: Stored, rows: slice, columns: slice) -> StoredArray:
        """A part of the weight, in the bits of `dtype`. Raises `OSError`."""
        groups_I = self._read_groups(checkpoint)[columns]
        codes_IO = self._read_codes(checkpoint, rows, columns)
        scales_GO = read_floats(checkpoint, f"{self.module}.scales", 0, math.prod(checkpoint.shape_of(f"{self.module}.scales")))
        scales_GO = scales_GO.reshape(-1, self.shape[0])[:, rows]
        values_IO: Float32Array = (codes_IO - self._read_zeros(checkpoint)[:, rows][groups_I]).astype(np.float32)
        # a product of float32 is exact for halves and small integers, and rounded once, as a package's own of halves
        values_IO *= scales_GO[groups_I]
        return round_to(np.ascontiguousarray(values_IO.T), self.dtype)

    def _read_groups(self, checkpoint: Stored) -> NDArray[np.int64]:
        inputs = self.shape[1]
        if not self.has_table:
            return np.arange(inputs) // self.group_size
        return read_integers(checkpoint, f"{self.module}.g_idx", inputs)

    def _read_codes(self, checkpoint: Stored, rows: slice, columns: slice) -> Codes:
        """(inputs, outputs) of the part."""
        num_words, num_values = _unit(self.bits)
        along = columns if self.layout == "gptq" else rows
        first, last = along.start // num_values, -(-along.stop // num_values)
        inside = slice(along.start - first * num_values, along.stop - first * num_values)
        if self.layout == "gptq":
            words = _read_words(checkpoint, self.codes, first * num_words, last * num_words)[:, rows]
            return _unpack(words, self.bits)[inside]
        words = _read_words(checkpoint, self.codes, columns.start, columns.stop)[:, first:last]
        return _in_order(_unpack(words.T, self.bits))[inside].T

    def _read_zeros(self, checkpoint: Stored) -> Codes:
        name = f"{self.module}.qzeros"
        codes_OG = _unpack(_read_words(checkpoint, name, 0, checkpoint.shape_of(name)[0]).T, self.bits)
        if self.layout == "awq":
            codes_OG = _in_order(codes_OG)
        zeros_GO: Codes = ((codes_OG + self.zero_offset) & (2**self.bits - 1)).T
        return zeros_GO


def find_grouped(checkpoint: Stored, name: str, quantization: Mapping[str, Any] | None) -> GroupedWeight | None:
    """The weight whose codes are the tensor `name`, in a checkpoint of which config.json says this of its quantisation.

    None if it is none, if config.json doesn't say of which format, or if what lies beside the codes doesn't fit. Raises
    `CheckpointError` if it can't be read.
    """
    scheme = _scheme(quantization or {})
    module = name.removesuffix(_CODES)
    if scheme is None or module == name or f"{module}.weight" in checkpoint:
        return None
    layout, zero_offset = scheme
    parts = {part: f"{module}.{part}" for part in ("qweight", "qzeros", "scales")}
    if any(part not in checkpoint or len(checkpoint.shape_of(part)) != 2 for part in parts.values()):
        return None
    if any(checkpoint.dtype_of(parts[part]) != "int32" for part in ("qweight", "qzeros")):
        return None
    dtype = checkpoint.dtype_of(parts["scales"])
    shapes = {part: checkpoint.shape_of(stored) for part, stored in parts.items()}
    measured = _measure(layout, shapes) if dtype in _SCALE_DTYPES and all(map(math.prod, shapes.values())) else None
    if measured is None:
        return None
    bits, inputs, outputs = measured
    groups, has_table = shapes["scales"][0], f"{module}.g_idx" in checkpoint
    group_size = -(-inputs // groups)
    weight = GroupedWeight(module, (outputs, inputs), dtype, bits, layout, zero_offset, group_size, has_table)
    try:
        fits = _fits_table(checkpoint, weight, groups) if has_table else _is_size(quantization or {}, inputs, groups)
    except OSError as error:
        raise CheckpointError(f"{module}.g_idx can't be read: {describe(error)}.") from error
    return weight if fits else None


def _scheme(quantization: Mapping[str, Any]) -> tuple[Literal["gptq", "awq"], int] | None:
    """The layout, and what is added to zero points; None for formats that lie otherwise, as kernels want them."""
    method = quantization.get("quant_method")
    named = quantization.get("checkpoint_format") or quantization.get("format")
    if method == "gptq" and not quantization.get("is_marlin_format"):
        offset = _GPTQ_FORMATS.get(str(named or "gptq").lower())
        return None if offset is None else ("gptq", offset)
    if method == "awq" and str(quantization.get("version") or named or "gemm").lower() == "gemm":
        return "awq", 0
    return None


def _measure(layout: str, shapes: Mapping[str, tuple[int, ...]]) -> tuple[int, int, int] | None:
    """Bits, inputs and outputs by the shapes of the three tensors; None if they don't fit each other."""
    (rows, width), (groups, zero_words), (num_groups, outputs) = (shapes[part] for part in ("qweight", "qzeros", "scales"))
    bits, rest = divmod(zero_words * _WORD_BITS, outputs)
    if rest or groups != num_groups or bits not in (_GPTQ_BITS if layout == "gptq" else (_AWQ_BITS,)):
        return None
    num_words, num_values = _unit(bits)
    if layout == "gptq":
        inputs, is_whole = rows // num_words * num_values, rows % num_words == 0 and width == outputs
    else:
        inputs, is_whole = rows, width == zero_words
    return (bits, inputs, outputs) if is_whole and groups <= inputs <= _MOST_INPUTS else None


def _is_size(quantization: Mapping[str, Any], inputs: int, groups: int) -> bool:
    """True if inputs fall into so many groups of one size, and config.json says neither another nor that they are mixed."""
    if quantization.get("desc_act"):
        return False
    said = quantization.get("group_size")
    if isinstance(said, int) and not isinstance(said, bool) and said > 0:
        return -(-inputs // said) == groups and (inputs % said == 0 or groups == 1)
    return inputs % groups == 0


def _fits_table(checkpoint: Stored, weight: GroupedWeight, groups: int) -> bool:
    name = f"{weight.module}.g_idx"
    if checkpoint.shape_of(name) != (weight.shape[1],) or checkpoint.dtype_of(name) not in ("int32", "int64"):
        return False
    table = read_integers(checkpoint, name, weight.shape[1])
    return bool(((table >= 0) & (table < groups)).all())


def read_integers(checkpoint: Stored, name: str, count: int) -> NDArray[np.int64]:
    """A table of int32 or int64. Raises `OSError`."""
    width = 4 if checkpoint.dtype_of(name) == "int32" else 8
    return np.frombuffer(checkpoint.read_bytes(name, 0, count * width), f"<i{width}").astype(np.int64)


def _read_words(checkpoint: Stored, name: str, first: int, last: int) -> Words:
    """Rows `first` to `last` of a tensor of words."""
    row = 4 * checkpoint.shape_of(name)[1]
    return np.frombuffer(checkpoint.read_bytes(name, first * row, (last - first) * row), "<u4").reshape(last - first, -1)


def _unit(bits: int) -> tuple[int, int]:
    """The fewest words that hold whole codes, and the number of these."""
    shared = math.gcd(bits, _WORD_BITS)
    return bits // shared, _WORD_BITS // shared


def _unpack(words: Words, bits: int) -> Codes:
    """The codes along the first axis of words; one may begin in a word and end in the next."""
    num_words, num_values = _unit(bits)
    units = words.reshape(-1, num_words, words.shape[1])
    codes = np.empty((len(units), num_values, words.shape[1]), dtype=np.int32)
    for value in range(num_values):
        word, shift = divmod(value * bits, _WORD_BITS)
        found = units[:, word] >> np.uint32(shift)
        if shift + bits > _WORD_BITS:
            found = found | (units[:, word + 1] << np.uint32(_WORD_BITS - shift))
        codes[:, value] = found & np.uint32(2**bits - 1)
    return codes.reshape(-1, words.shape[1])


def _in_order(codes: Codes) -> Codes:
    """AWQ's codes, whole words of them along the first axis, in the order of the outputs."""
    ordered: Codes = codes.reshape(-1, len(_AWQ_PLACES), codes.shape[1])[:, _AWQ_PLACES].reshape(codes.shape)
    return ordered
