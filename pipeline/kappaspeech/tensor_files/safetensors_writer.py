"""safetensors written one tensor at a time, so that a file of many gigabytes needs the memory of its largest tensor."""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

# https://github.com/huggingface/safetensors#format
_DTYPE_NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
_ALIGNMENT_BYTES = 8


class SafetensorsWriter:
    """Writes the tensors named in `shapes`, of one dtype or of one each, in that order. `add` each of them, then `close`."""

    def __init__(
        self,
        path: Path,
        shapes: Mapping[str, Sequence[int]],
        *,
        dtype: torch.dtype | Mapping[str, torch.dtype],
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        self._dtypes = dict.fromkeys(shapes, dtype) if isinstance(dtype, torch.dtype) else dict(dtype)
        self._pending = list(shapes)
        self._shapes = {name: tuple(shape) for name, shape in shapes.items()}
        header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
        offset = 0
        for name, shape in self._shapes.items():
            size = self._num_bytes(name)
            header[name] = {
                "dtype": _DTYPE_NAMES[self._dtypes[name]],
                "shape": list(shape),
                "data_offsets": [offset, offset + size],
            }
            offset += size
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % _ALIGNMENT_BYTES)
        self._file = path.open("wb")
        self._file.write(struct.pack("<Q", len(text)) + text)

    def add(self, name: str, tensor: Tensor) -> None:
        """Append the next tensor, cast to its dtype in the file."""
        assert tuple(tensor.shape) == self._shapes[name], f"{name} has shape {tuple(tensor.shape)}"
        flat = tensor.detach().to("cpu", self._dtypes[name]).contiguous().flatten()
        self.add_blocks(name, [flat.view(torch.uint8).numpy().data])

    def add_blocks(self, name: str, blocks: Iterable[bytes | memoryview]) -> None:
        """Append the next tensor from its bytes, which come in blocks."""
        assert self._pending[:1] == [name], f"{name} is not the next tensor"
        written = sum(self._file.write(block) for block in blocks)
        assert written == self._num_bytes(name), f"{name} has {written} bytes"
        self._pending.pop(0)

    def _num_bytes(self, name: str) -> int:
        return self._dtypes[name].itemsize * int(torch.Size(self._shapes[name]).numel())

    def close(self) -> None:
        """Make the file durable. Every tensor must have been added."""
        assert not self._pending, f"{len(self._pending)} tensors were never added"
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()

    def abandon(self) -> None:
        """Close an unfinished file; whoever made its folder removes it."""
        self._file.close()
