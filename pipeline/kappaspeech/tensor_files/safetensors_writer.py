"""safetensors written one tensor at a time, so that a file of many gigabytes needs the memory of its largest tensor."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from kappaspeech.tensor_files.safetensors_header import FORMATS, HeaderEntry, pack_header

_DTYPE_NAMES = {form.name: code for code, form in FORMATS.items()}


@dataclass(frozen=True)
class Layout:
    """A file before its tensors are written: its `head`, which they follow, the place where each begins, and its size."""

    head: bytes
    begins: Mapping[str, int]
    num_bytes: int


def lay_out(
    shapes: Mapping[str, Sequence[int]],
    *,
    dtype: torch.dtype | Mapping[str, torch.dtype],
    metadata: Mapping[str, str] | None = None,
) -> Layout:
    """The layout of a file of these tensors, in this order, of one dtype or of one each."""
    entries: dict[str, HeaderEntry] = {}
    offset = 0
    for name, shape in shapes.items():
        kind = dtype if isinstance(dtype, torch.dtype) else dtype[name]
        end = offset + kind.itemsize * int(torch.Size(shape).numel())
        entries[name] = HeaderEntry(_DTYPE_NAMES[str(kind).removeprefix("torch.")], tuple(shape), offset, end)
        offset = end
    head = pack_header(entries, metadata)
    return Layout(head, {name: len(head) + entry.begin for name, entry in entries.items()}, len(head) + offset)


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
        self._file = path.open("wb")
        self._file.write(lay_out(self._shapes, dtype=self._dtypes, metadata=metadata).head)

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
