"""Which matrices a checkpoint's tensors are: weights as they stand, kernels flattened, experts one by one, scaled codes."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from pipeline.scan.checkpoint import Checkpoint, TensorRef
from pipeline.scan.dtypes import CODES, FLOATS, FloatArray, StoredArray, widen
from pipeline.scan.scales import Scales, scale_blocks

# A matrix of at most so many stored bytes is kept while it is measured; a larger one is read again for each pass.
_MAX_HELD_BYTES = 256 << 20
# Three-dimensional parameters that stack one matrix per expert: transformers' fused experts, granite's, GGUF's.
_EXPERTS = re.compile(r"experts?\b|experts?\.|_exps\b|moe\.(input|output)_linear|\.(gate_up_proj|down_proj|gate_proj|up_proj)$")
_SCALE_SUFFIXES = ("_scale_inv", "_scale")


@dataclass(frozen=True)
class MatrixRef:
    """One matrix to measure: `shape` from element `begin` of a tensor. `name` is the tensor's, with [expert] for one of many."""

    name: str
    tensor: TensorRef
    shape: tuple[int, int]
    expert: int | None = None
    scale: str | None = None

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
    """Every matrix of a checkpoint, and every tensor that isn't one with the reason."""
    matrices, skipped = [], []
    for ref in checkpoint.tensors:
        scale = next((ref.name + suffix for suffix in _SCALE_SUFFIXES if ref.name + suffix in checkpoint), None)
        reason = _refuse(ref, checkpoint, scale)
        if reason is not None:
            skipped.append(SkippedTensor(ref.name, ref.shape, reason))
        elif len(ref.shape) == 3 and _EXPERTS.search(ref.name):
            matrices += [
                MatrixRef(f"{ref.name}[{expert}]", ref, (ref.shape[1], ref.shape[2]), expert) for expert in range(ref.shape[0])
            ]
        else:
            matrices.append(MatrixRef(ref.name, ref, (ref.shape[0], math.prod(ref.shape[1:])), scale=scale))
    return matrices, skipped


def _refuse(ref: TensorRef, checkpoint: Checkpoint, scale: str | None) -> str | None:
    if any(ref.name.endswith(suffix) and ref.name.removesuffix(suffix) in checkpoint for suffix in _SCALE_SUFFIXES):
        return "the scales of a quantised tensor"
    if len(ref.shape) < 2:
        return f"{len(ref.shape)}-dimensional"
    if math.prod(ref.shape) == 0:
        return "empty"
    matrix = ref.shape[1:] if len(ref.shape) == 3 and _EXPERTS.search(ref.name) else (ref.shape[0], math.prod(ref.shape[1:]))
    if min(matrix) == 1:
        return "a vector: one dimension is 1, so its condition number is 1 whatever it holds"
    if ref.dtype in CODES:
        if scale is None:
            return f"{ref.dtype} codes without their scales ({ref.name}_scale or {ref.name}_scale_inv)"
        if len(ref.shape) != 2 or scale_blocks(ref.shape, checkpoint.shape_of(scale)) is None:
            return f"{scale} has shape {checkpoint.shape_of(scale)}, which doesn't say how to scale {ref.shape}"
        return None
    if ref.dtype not in FLOATS and not ref.dtype.startswith("gguf_"):
        return f"stored as {ref.dtype}: indices or packed codes, not weights. Scan the unquantised checkpoint instead"
    return None


class StoredMatrix:
    """A checkpoint's matrix as `spectrum` reads it: `short` × `long`, in float64, a few vectors at a time."""

    def __init__(self, checkpoint: Checkpoint, ref: MatrixRef, *, watch: Callable[[], None] = lambda: None) -> None:
        self._checkpoint, self._ref, self._watch = checkpoint, ref, watch
        self._is_tall = ref.shape[0] > ref.shape[1]
        self.short, self.long = min(ref.shape), max(ref.shape)
        self.is_float64 = ref.tensor.dtype == "float64"
        num_bytes = math.prod(ref.shape) * (FLOATS[ref.tensor.dtype].num_bytes if ref.tensor.dtype in FLOATS else 4)
        self._held: StoredArray | None = self._read_rows(0, ref.shape[0]) if num_bytes <= _MAX_HELD_BYTES else None
        self._scales = self._read_scales(ref.scale) if ref.scale else None

    def _read_rows(self, start: int, stop: int) -> StoredArray:
        columns = self._ref.shape[1]
        begin = self._ref.begin
        flat = self._checkpoint.read(self._ref.tensor.name, begin + start * columns, begin + stop * columns)
        return flat.reshape(stop - start, columns)

    def _read_columns(self, start: int, stop: int) -> StoredArray:
        columns, begin = self._ref.shape[1], self._ref.begin
        rows = (begin + row * columns for row in range(self._ref.shape[0]))
        return np.stack([self._checkpoint.read(self._ref.tensor.name, row + start, row + stop) for row in rows])

    def _read_scales(self, name: str) -> Scales:
        shape = self._checkpoint.shape_of(name)
        values = widen(self._checkpoint.read(name, 0, math.prod(shape)), self._checkpoint.dtype_of(name))
        return Scales(values.reshape(shape), self._ref.shape)

    def block(self, start: int, stop: int) -> FloatArray:
        """Vectors `start` to `stop` along the long side: (short, stop − start), float64. Raises `OSError`."""
        stored, rows, columns = self._read_block(start, stop)
        wide = widen(stored, self._ref.tensor.dtype)
        if self._scales is not None:
            wide *= self._scales.of(rows, columns)
        return wide.T if self._is_tall else wide

    def stored_block(self, start: int, stop: int) -> tuple[StoredArray, str]:
        """The same in the stored bits where those are whole numbers of torch's and unscaled, else in float64."""
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
