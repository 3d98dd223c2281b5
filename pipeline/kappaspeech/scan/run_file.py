"""A training run of ours as a checkpoint: the base model with the trained tensors in their places, as in its export."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np

from kappaspeech.errors import CheckpointError
from kappaspeech.expert_names import split_expert
from kappaspeech.model.prefixes import LLM_PREFIX
from kappaspeech.runs.result import RunResult
from kappaspeech.tensor_files.dtypes import FLOATS, StoredArray
from kappaspeech.tensor_files.safetensors_file import SafetensorsFile
from kappaspeech.tensor_files.tensor_file import StoredTensor

# LoRA is merged this many rows at a time, cut at the same places for every reader, so that all read the same bits
_BLOCK_ROWS = 512


class Base(Protocol):
    """The part of a checkpoint's interface that is needed of the base."""

    def read(self, name: str, start: int, stop: int) -> StoredArray: ...
    def dtype_of(self, name: str) -> str: ...


class TrainedFile:
    """The LLM's tensors that a run changed, under the names that they have in the LLM, in the dtype that it computed in.

    `shapes` are the base's, by every name. Raises `CheckpointError` for a factor of LoRA's or an expert that belongs to none.
    """

    def __init__(self, parts: RunResult, base: Base, shapes: Mapping[str, tuple[int, ...]]) -> None:
        from kappaspeech.model.lora import factors_of, is_factor

        if parts.dtype is not None and parts.dtype not in FLOATS:
            raise CheckpointError(
                f"{parts.trained} is of a run whose run.json has {parts.dtype!r:.60} for its dtype: bring it back from a copy."
            )
        self.path = parts.trained
        self._parts, self._base, self._shapes = parts, base, shapes
        self._file = SafetensorsFile(parts.trained)
        llm = [tensor for tensor in self._file.tensors if tensor.name.startswith(LLM_PREFIX)]
        self._stored = {tensor.name.removeprefix(LLM_PREFIX): tensor for tensor in llm}
        self._experts = self._find_experts()
        single = {name for experts in self._experts.values() for name in experts.values()}
        whole = [name for name in self._stored if not is_factor(name) and name not in single]
        self._factors = {name: factors_of(name) for name in shapes if factors_of(name)[0] in self._stored}
        known = {factor for pair in self._factors.values() for factor in pair}
        homeless = [name for name in self._stored if is_factor(name) and name not in known]
        if homeless or (self._factors and parts.lora is None) or not known <= set(self._stored):
            name = min(homeless or known)
            raise CheckpointError(
                f"{self.path} holds LoRA's factor {name}, which doesn't say how it changes the base model. Put back the run's "
                "own run.json and its base."
            )
        self.tensors = [self._list(name, self._stored[name].shape) for name in whole]
        self.tensors += [self._list(name, shapes[name]) for name in (*self._factors, *self._experts)]
        self._block: tuple[str, int, StoredArray] | None = None

    def _find_experts(self) -> dict[str, dict[int, str]]:
        """The names of single experts that trained, by their tensor and their number."""
        found: dict[str, dict[int, str]] = {}
        for name, stored in self._stored.items():
            tensor, expert = split_expert(name)
            if expert is None:
                continue
            shape = self._shapes.get(tensor, ())
            if len(shape) != 3 or expert >= shape[0] or stored.shape != shape[1:]:
                raise CheckpointError(
                    f"{self.path} holds {name} {stored.shape}, which is no expert of {tensor}, in its base {shape or 'absent'}. "
                    "Put the base model back that it was trained on."
                )
            found.setdefault(tensor, {})[expert] = name
        return found

    def _list(self, name: str, shape: tuple[int, ...]) -> StoredTensor:
        dtype = self._parts.dtype or (self._stored[name].dtype if name in self._stored else self._base.dtype_of(name))
        storage = len(self._shapes) + 1 if name not in self._stored else self._stored[name].storage
        return StoredTensor(name, shape, dtype, math.prod(shape) * FLOATS[dtype].num_bytes, storage)

    def read(self, name: str, start: int, stop: int) -> StoredArray:
        """Elements `start` to `stop` of the flattened tensor after training, rounded once. Raises `OSError`."""
        if name not in self._factors and name not in self._experts:
            values = self._file.read(LLM_PREFIX + name, start, stop)
            return _to_dtype(values, self._stored[name].dtype, self._dtype(name))
        shape = self._shapes[name]
        # blocks of whole rows, or of whole experts
        unit = math.prod(shape[1:]) * (1 if len(shape) == 3 else _BLOCK_ROWS)
        parts = []
        for number in range(start // unit, -(-stop // unit)):
            block, begin = self._merged(name, number), number * unit
            parts.append(block[max(0, start - begin) : stop - begin])
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def read_bytes(self, name: str, offset: int, size: int) -> bytes:
        """`size` bytes of the tensor that `read` gives, from `offset` on."""
        width = FLOATS[self._dtype(name)].num_bytes
        first, last = offset // width, -(-(offset + size) // width)
        return self.read(name, first, last).tobytes()[offset - first * width :][:size]

    def _dtype(self, name: str) -> str:
        return self._parts.dtype or (self._stored[name].dtype if name in self._stored else self._base.dtype_of(name))

    def _merged(self, name: str, number: int) -> StoredArray:
        """Block `number` of base + scaling·B·A, or of a fused tensor of which some experts trained; flat."""
        if name in self._experts:
            return self._expert(name, number)
        if self._block is not None and self._block[:2] == (name, number):
            return self._block[2]
        from kappaspeech.model.lora import merge

        shape = self._shapes[name]
        rows = (
            slice(number, number + 1)
            if len(shape) == 3
            else slice(number * _BLOCK_ROWS, min((number + 1) * _BLOCK_ROWS, shape[0]))
        )
        row = math.prod(shape[1:])
        stored = self._base.read(name, rows.start * row, rows.stop * row)
        base = _to_torch(stored, self._base.dtype_of(name)).reshape(-1, *shape[1:])
        first, second = (self._read_factor(factor) for factor in self._factors[name])
        if len(shape) == 3:
            # the rows of an expert's A lie together; in B the expert is the fastest index
            rank = first.shape[0] // shape[0]
            first = first[number * rank : (number + 1) * rank]
            second = second.reshape(second.shape[0], rank, shape[0])[:, :, number]
        else:
            second = second[rows]
        pair = dict(zip(self._factors[name], (first, second), strict=True))
        merged = merge(name, base, pair, self._parts.lora).reshape(-1)
        flat = _to_dtype(merged.float().numpy(), "float32", self._dtype(name))
        self._block = (name, number, flat)
        return flat

    def _expert(self, name: str, number: int) -> StoredArray:
        unit = math.prod(self._shapes[name][1:])
        own = self._experts[name].get(number)
        if own is not None:
            return _to_dtype(self._file.read(LLM_PREFIX + own, 0, unit), self._stored[own].dtype, self._dtype(name))
        stored = self._base.read(name, number * unit, (number + 1) * unit)
        return _to_dtype(stored, self._base.dtype_of(name), self._dtype(name))

    def _read_factor(self, factor: str) -> Any:
        tensor = self._stored[factor]
        flat = self._file.read(LLM_PREFIX + factor, 0, math.prod(tensor.shape))
        return _to_torch(flat, tensor.dtype).reshape(tensor.shape)


def read_changed(parts: RunResult) -> list[str]:
    """Names, as the LLM has them, of the tensors and factors that a run trained, wholly or single experts of them."""
    names = (tensor.name for tensor in SafetensorsFile(parts.trained).tensors)
    return [split_expert(name.removeprefix(LLM_PREFIX))[0] for name in names if name.startswith(LLM_PREFIX)]


def _to_torch(values: StoredArray, dtype: str) -> Any:
    import torch

    return torch.frombuffer(bytearray(values.tobytes()), dtype=getattr(torch, dtype))


def _to_dtype(values: StoredArray, stored: str, dtype: str) -> StoredArray:
    """`values`, which are of the format `stored`, rounded to another one."""
    if stored == dtype:
        return values
    import torch

    rounded = _to_torch(values, stored).to(getattr(torch, dtype))
    array: StoredArray = rounded.view(torch.uint8).numpy().view(FLOATS[dtype].array)
    return array
