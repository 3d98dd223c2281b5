"""safetensors written one tensor at a time, so that a file of many gigabytes needs the memory of its largest tensor."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from kappaspeech.tensor_files.safetensors_header import FORMATS, HeaderEntry, pack_header

_DTYPE_NAMES = {form.name: code for code, form in FORMATS.items()}


class SafetensorsWriter:
    """A writer of the tensors named in `shapes`, of one dtype or of one each, in that order. `add` each of them, then `close`."""

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
        entries: dict[str, HeaderEntry] = {}
        offset = 0
        for name, shape in self._shapes.items():
            end = offset + self._num_bytes(name)
            entries[name] = HeaderEntry(_DTYPE_NAMES[str(self._dtypes[name]).removeprefix("torch.")], shape, offset, end)
            offset = end
        self._file = path.open("wb")
        self._file.write(pack_header(entries, metadata))

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
        """Close an unfinished file; the maker of its folder removes it."""
        self._file.close()
