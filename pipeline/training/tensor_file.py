"""safetensors written one tensor at a time, so that a file of many gigabytes needs the memory of its largest tensor."""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

_DTYPE_NAMES = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16"}
_ALIGNMENT_BYTES = 8


class TensorFileWriter:
    """Writes the tensors named in `shapes`, all of one dtype, in that order. `add` each of them, then `close`."""

    def __init__(
        self,
        path: Path,
        shapes: Mapping[str, Sequence[int]],
        *,
        dtype: torch.dtype,
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        self._dtype = dtype
        self._pending = list(shapes)
        self._shapes = {name: tuple(shape) for name, shape in shapes.items()}
        header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
        offset = 0
        for name, shape in self._shapes.items():
            size = dtype.itemsize * int(torch.Size(shape).numel())
            header[name] = {"dtype": _DTYPE_NAMES[dtype], "shape": list(shape), "data_offsets": [offset, offset + size]}
            offset += size
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % _ALIGNMENT_BYTES)
        self._file = path.open("wb")
        self._file.write(struct.pack("<Q", len(text)) + text)

    def add(self, name: str, tensor: Tensor) -> None:
        """Append the next tensor, cast to the file's dtype."""
        assert self._pending[:1] == [name], f"{name} is not the next tensor"
        assert tuple(tensor.shape) == self._shapes[name], f"{name} has shape {tuple(tensor.shape)}"
        flat = tensor.detach().to("cpu", self._dtype).contiguous().flatten()
        self._file.write(flat.view(torch.uint8).numpy().data)
        self._pending.pop(0)

    def close(self) -> None:
        """Make the file durable. Every tensor must have been added."""
        assert not self._pending, f"{len(self._pending)} tensors were never added"
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()

    def abandon(self) -> None:
        """Close an unfinished file; whoever made its folder removes it."""
        self._file.close()
