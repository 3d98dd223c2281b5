"""The matrices of a checkpoint's tensors: weights as they are, kernels flattened, experts one by one, scaled codes."""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from kappaspeech.errors import CheckpointError
from kappaspeech.expert_names import expert_name
from kappaspeech.outside import describe
from kappaspeech.scan.checkpoint import Checkpoint, TensorRef
from kappaspeech.scan.four_bit import FourBitWeight, find_four_bit
from kappaspeech.scan.grouped_codes import GroupedWeight, find_grouped
from kappaspeech.scan.packed import SCALE_DTYPES, SCALES_REASON, Scale, find_packed, find_scale
from kappaspeech.scan.partition import MAX_HELD_BYTES
from kappaspeech.scan.scales import Scales, scale_blocks
from kappaspeech.tensor_files.dtypes import CODES, FLOATS, FloatArray, StoredArray, widen
from kappaspeech.tensor_files.gguf_file import UNREADABLE

# Three-dimensional parameters that stack one matrix per expert: transformers' fused experts, granite's and JetMoE's, GGUF's.
_EXPERTS = re.compile(r"experts?\b|experts?\.|_exps\b|\b(input|output)_linear\b|\.(gate_up_proj|down_proj|gate_proj|up_proj)$")
# DBRX's two-dimensional ones, whose rows are those of all experts: no module in their names has a number, as `experts.3` and
# Switch Transformers' `experts.expert_3` have.
_EXPERT_ROWS = re.compile(r"\bexperts\.(?!.*\d\.|(.+\.)?\d+$)")
_DIGEST_BYTES = 8 << 20
_FLAGS = ("uint8", "int8", "int32", "int64", "bool")
# No program could have made a tensor of more elements.
_MAX_ELEMENTS = 2**48


@dataclass(frozen=True)
class MatrixRef:
    """One matrix to measure: `shape` from element `begin` of a tensor. `name` is the tensor's, with [expert] for one of many.

    Of `four_bit` and `grouped` codes the tensor has the shape and dtype of the weight that they mean, and of the latter its name.
    """

    name: str
    tensor: TensorRef
    shape: tuple[int, int]
    expert: int | None = None
    scale: Scale | None = None
    four_bit: FourBitWeight | None = None
    grouped: GroupedWeight | None = None

    @property
    def stored_name(self) -> str:
        """The name of the tensor that holds its bytes."""
        return self.grouped.codes if self.grouped is not None else self.tensor.name

    @property
    def is_of_packed_codes(self) -> bool:
        """True if the dtype is what the codes are rounded to, and says nothing of the far greater rounding to codes."""
        return self.four_bit is not None or self.grouped is not None

    @property
    def begin(self) -> int:
        return (self.expert or 0) * math.prod(self.shape)


@dataclass(frozen=True)
class SkippedTensor:
    """A tensor that is listed and not ranked."""

    name: str
    shape: tuple[int, ...]
    reason: str


def list_matrices(checkpoint: Checkpoint) -> tuple[list[MatrixRef], list[SkippedTensor]]:
    """Every matrix of a checkpoint, and every other tensor with the reason why it is none."""
    matrices, skipped = [], []
    packed = find_packed(checkpoint.dtypes)
    decoded = {ref.name: weight for ref in checkpoint.tensors if (weight := find_four_bit(checkpoint, ref.name)) is not None}
    in_groups = {ref.name: found for ref in checkpoint.tensors if (found := _find_grouped(checkpoint, ref)) is not None}
    helpers = [weight.helpers for weight in decoded.values()] + [weight.helpers for weight in in_groups.values()]
    packed |= dict.fromkeys((name for names in helpers for name in names), SCALES_REASON)
    for ref in checkpoint.tensors:
        four_bit, grouped = decoded.get(ref.name), in_groups.get(ref.name)
        if grouped is not None:
            packed.pop(ref.name, None)
            ref = replace(ref, name=grouped.name, shape=grouped.shape, dtype=grouped.dtype)
        if four_bit is not None:
            ref = replace(ref, shape=four_bit.shape, dtype=four_bit.dtype)
            packed.pop(ref.name, None)
        scale = find_scale(ref.name, ref.dtype, checkpoint.dtypes)
        reason = _refuse(ref, checkpoint, scale, packed.get(ref.name))
        if reason is not None:
            skipped.append(SkippedTensor(ref.name, ref.shape, reason))
        elif grouped is None and (experts := _find_experts(ref, checkpoint)) is not None:
            matrices += [
                MatrixRef(expert_name(ref.name, expert), ref, experts[1:], expert, four_bit=four_bit)
                for expert in range(experts[0])
            ]
        else:
            codes_scale = scale if ref.dtype in CODES else None
            shape = (ref.shape[0], math.prod(ref.shape[1:]))
            matrices.append(MatrixRef(ref.name, ref, shape, scale=codes_scale, four_bit=four_bit, grouped=grouped))
    return matrices, skipped


def _find_grouped(checkpoint: Checkpoint, ref: TensorRef) -> GroupedWeight | None:
    return find_grouped(checkpoint, ref.name, checkpoint.quantization)


def _find_experts(ref: TensorRef, checkpoint: Checkpoint) -> tuple[int, int, int] | None:
    """The number of experts whose matrices a tensor stacks, and the shape of each; None if it is one matrix."""
    if len(ref.shape) == 3 and _EXPERTS.search(ref.name) is not None:
        return (ref.shape[0], ref.shape[1], ref.shape[2])
    number = checkpoint.num_experts
    if len(ref.shape) == 2 and number is not None and _EXPERT_ROWS.search(ref.name) is not None:
        num_rows, rest = divmod(ref.shape[0], number)
        # a router has a row for each
        return (number, num_rows, ref.shape[1]) if rest == 0 and num_rows > 1 else None
    return None


def _refuse(ref: TensorRef, checkpoint: Checkpoint, scale: Scale | None, packed: str | None) -> str | None:
    if packed is not None and (len(ref.shape) >= 2 or "packed codes" in packed or "scales" in packed):
        return packed
    if len(ref.shape) < 2:
        return f"{len(ref.shape)}-dimensional"
    if math.prod(ref.shape) == 0:
        return "empty"
    if math.prod(ref.shape) > _MAX_ELEMENTS:
        return "more elements than any memory holds"
    if ref.dtype in CODES:
        reason = _refuse_scale(ref, checkpoint, scale)
        if reason is not None:
            return reason
    elif ref.dtype.startswith(UNREADABLE):
        return f"stored as {ref.dtype.removeprefix(UNREADABLE)}, which no decoder reads. Scan another format of the checkpoint"
    elif ref.dtype not in FLOATS and not ref.dtype.startswith("gguf_"):
        return f"stored as {ref.dtype}: indices or packed codes, not weights. Scan the unquantised checkpoint instead"
    experts = _find_experts(ref, checkpoint)
    matrix = experts[1:] if experts is not None else (ref.shape[0], math.prod(ref.shape[1:]))
    return "a vector: one dimension is 1, so its condition number is 1 whatever it holds" if min(matrix) == 1 else None


def _refuse_scale(ref: TensorRef, checkpoint: Checkpoint, scale: Scale | None) -> str | None:
    if scale is None:
        return f"{ref.dtype} codes without their scales ({ref.name}_scale or {ref.name}_scale_inv)"
    if checkpoint.dtype_of(scale.name) not in SCALE_DTYPES:
        return f"{scale.name} is stored as {checkpoint.dtype_of(scale.name)}, which doesn't say how to scale {ref.shape}"
    if scale.zero_point is not None and checkpoint.dtype_of(scale.zero_point) not in (*SCALE_DTYPES, *_FLAGS):
        return f"{scale.zero_point} is stored as {checkpoint.dtype_of(scale.zero_point)}, which is no zero point to take away"
    if scale.layout is not None and _read_small(checkpoint, scale.layout).any():
        return f"{ref.dtype} codes whose layout ({scale.layout}) is that of a GPU. Scan the unquantised checkpoint instead"
    for name in (scale.name, *([scale.zero_point] if scale.zero_point else [])):
        is_one = len(ref.shape) == 2 and _find_experts(ref, checkpoint) is None
        if not is_one or scale_blocks(ref.shape, checkpoint.shape_of(name)) is None:
            return f"{name} has shape {checkpoint.shape_of(name)}, which doesn't say how to scale {ref.shape}"
    return None


def _read_small(checkpoint: Checkpoint, name: str) -> StoredArray:
    """All of a tensor that is as small as a flag. Raises `CheckpointError`."""
    size = math.prod(checkpoint.shape_of(name))
    try:
        return checkpoint.read(name, 0, min(size, 16)) if checkpoint.dtype_of(name) in _FLAGS else np.ones(1)
    except OSError as error:
        raise CheckpointError(f"{checkpoint.file_of(name)}: {name} can't be read: {describe(error)}.") from error


def digest_matrix(checkpoint: Checkpoint, ref: MatrixRef) -> str:
    """A digest of all stored bytes of `ref`, those of its scales too. Raises `OSError`."""
    total = hashlib.sha256()
    num_bytes = checkpoint.num_bytes_of(ref.stored_name)
    begin, size = 0, num_bytes
    if ref.expert is not None:
        size = num_bytes * math.prod(ref.shape) // math.prod(ref.tensor.shape)
        begin = ref.expert * size
    helpers = [name for name in (ref.scale.name, ref.scale.zero_point) if name] if ref.scale else []
    if ref.four_bit is not None:
        # an expert's codes needn't begin with a byte
        begin, size, helpers = 0, num_bytes, list(ref.four_bit.helpers)
        total.update(str(ref.expert).encode())
    if ref.grouped is not None:
        helpers = list(ref.grouped.helpers)
        # what config.json says of them counts as much as the codes
        total.update(repr(ref.grouped).encode())
    ranges = [(ref.stored_name, begin, size), *((name, 0, checkpoint.num_bytes_of(name)) for name in helpers)]
    for name, first, length in ranges:
        for offset in range(first, first + length, _DIGEST_BYTES):
            total.update(checkpoint.read_bytes(name, offset, min(_DIGEST_BYTES, first + length - offset)))
    return total.hexdigest()


class StoredMatrix:
    """A checkpoint's matrix as `spectrum` reads it: `short` × `long`, in float64, a few vectors at a time."""

    def __init__(self, checkpoint: Checkpoint, ref: MatrixRef, *, watch: Callable[[], None] = lambda: None) -> None:
        self._checkpoint, self._ref, self._watch = checkpoint, ref, watch
        self._is_tall = ref.shape[0] > ref.shape[1]
        self.short, self.long = min(ref.shape), max(ref.shape)
        self.is_float64 = ref.tensor.dtype == "float64"
        num_bytes = math.prod(ref.shape) * (FLOATS[ref.tensor.dtype].num_bytes if ref.tensor.dtype in FLOATS else 4)
        self._held: StoredArray | None = self._read_rows(0, ref.shape[0]) if num_bytes <= MAX_HELD_BYTES else None
        self._scales = self._read_scales(ref.scale.name) if ref.scale else None
        self._factor = ref.scale.factor if ref.scale else 1.0
        self._zeros = self._read_scales(ref.scale.zero_point) if ref.scale and ref.scale.zero_point else None

    def _read_rows(self, start: int, stop: int) -> StoredArray:
        columns = self._ref.shape[1]
        if self._ref.grouped is not None:
            return self._ref.grouped.read(self._checkpoint, slice(start, stop), slice(0, columns))
        begin = self._ref.begin
        return self._read(begin + start * columns, begin + stop * columns).reshape(stop - start, columns)

    def _read_columns(self, start: int, stop: int) -> StoredArray:
        columns, begin = self._ref.shape[1], self._ref.begin
        if self._ref.grouped is not None:
            return self._ref.grouped.read(self._checkpoint, slice(0, self._ref.shape[0]), slice(start, stop))
        rows = (begin + row * columns for row in range(self._ref.shape[0]))
        return np.stack([self._read(row + start, row + stop) for row in rows])

    def _read(self, start: int, stop: int) -> StoredArray:
        """Elements `start` to `stop` of the tensor, in the bits of its dtype."""
        if self._ref.four_bit is not None:
            return self._ref.four_bit.read(self._checkpoint, start, stop)
        return self._checkpoint.read(self._ref.tensor.name, start, stop)

    def _read_scales(self, name: str) -> Scales:
        shape = self._checkpoint.shape_of(name)
        values = widen(self._checkpoint.read(name, 0, math.prod(shape)), self._checkpoint.dtype_of(name))
        return Scales(values.reshape(shape), self._ref.shape)

    def block(self, start: int, stop: int) -> FloatArray:
        """Vectors `start` to `stop` along the long side: (short, stop − start), float64. Raises `OSError`."""
        stored, rows, columns = self._read_block(start, stop)
        wide = widen(stored, self._ref.tensor.dtype)
        if self._zeros is not None:
            wide -= self._zeros.of(rows, columns)
        if self._scales is not None:
            wide *= self._factor * self._scales.of(rows, columns)
        return wide.T if self._is_tall else wide

    def stored_block(self, start: int, stop: int) -> tuple[StoredArray, str]:
        """The same in the stored bits if torch has their format and they are unscaled, else in float64."""
        dtype = self._ref.tensor.dtype
        if self._scales is not None or dtype not in ("bfloat16", "float16", "float32"):
            return self.block(start, stop), "float64"
        stored, _, _ = self._read_block(start, stop)
        return (stored.T if self._is_tall else stored), dtype

    def _read_block(self, start: int, stop: int) -> tuple[StoredArray, slice, slice]:
        self._watch()
        part, whole = slice(start, stop), slice(0, self.short)
        rows, columns = (part, whole) if self._is_tall else (whole, part)
        if self._held is not None:
            stored = self._held[rows, columns]
        else:
            stored = self._read_rows(start, stop) if self._is_tall else self._read_columns(start, stop)
        return stored, rows, columns
