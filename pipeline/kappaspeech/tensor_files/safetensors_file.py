"""One safetensors file: its header, and any range of a tensor's elements.

It is read with `pread` and not through a map: a file that shrinks under a scan then raises an error that can be reported, while a
map would kill the process. https://github.com/huggingface/safetensors#format
"""

from __future__ import annotations

import errno
import math
import os
from pathlib import Path
from typing import Any

import numpy as np

from kappaspeech.errors import CheckpointError
from kappaspeech.outside import explained, open_regular
from kappaspeech.tensor_files.dtypes import StoredArray
from kappaspeech.tensor_files.safetensors_header import FORMATS, Header, StoredFormat, TornHeaderError, parse_entry, read_header
from kappaspeech.tensor_files.tensor_file import StoredTensor

# a hole as large as this was never written; if a file system makes holes of zeros, smaller ones may be weights
_MIN_HOLE_BYTES = 64 << 20
_BLOCK_BYTES = 1 << 20


class SafetensorsFile:
    """The header is read at once, tensors on demand. Raises `CheckpointError` on a file that is torn or no safetensors."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with explained(f"{path} can't be read as safetensors", "Fetch it again.", kind=CheckpointError):
            self._descriptor = open_regular(path)
            self._num_bytes = os.fstat(self._descriptor).st_size
            header = self._read_header()
        self._entries: dict[str, tuple[str, int]] = {}
        self._data_begin = header.data_begin
        self.tensors = [self._parse(name, described) for name, described in header.entries.items()]
        self._check_ranges()

    def __del__(self) -> None:
        if hasattr(self, "_descriptor"):
            os.close(self._descriptor)

    def _read_header(self) -> Header:
        try:
            return read_header(self._descriptor)
        except TornHeaderError as error:
            raise CheckpointError(
                f"{self.path} is no whole safetensors file: {error}. Fetch it again (a git-lfs pointer of a few lines looks like "
                "this too)."
            ) from error
        except ValueError as error:
            raise CheckpointError(f"{self.path} is no safetensors file: {error}.") from error

    def _parse(self, name: str, described: Any) -> StoredTensor:
        try:
            entry = parse_entry(described)
        except ValueError as error:
            raise CheckpointError(
                f"{self.path}: the header's entry for {name} can't be understood: {error}. Fetch it again."
            ) from error
        shape, begin, end = entry.shape, entry.begin, entry.end
        dtype, array = FORMATS.get(entry.dtype, StoredFormat(entry.dtype.lower(), ""))
        if array and end - begin != math.prod(shape) * np.dtype(array).itemsize:
            raise CheckpointError(f"{self.path}: {name} has shape {shape} of {dtype} but {end - begin} bytes. Fetch it again.")
        if self._data_begin + end > self._num_bytes:
            raise CheckpointError(
                f"{self.path} ends at byte {self._num_bytes}, but {name} reaches to {self._data_begin + end}: the file is torn. "
                "Fetch it again."
            )
        if end - begin >= _MIN_HOLE_BYTES and self._is_hole(self._data_begin + begin, self._data_begin + end):
            raise CheckpointError(
                f"{self.path} has a hole where {name} should be: its {end - begin:,} bytes were never written, as in a download "
                "that was broken off. Fetch it again."
            )
        self._entries[name] = (array, begin)
        return StoredTensor(name, shape, dtype, end - begin, begin)

    def _is_hole(self, begin: int, end: int) -> bool:
        try:
            # blocks at the ends may hold a neighbour's bytes
            return os.lseek(self._descriptor, begin + _BLOCK_BYTES, os.SEEK_DATA) >= end - _BLOCK_BYTES
        except OSError as error:
            # no data beyond; a file system without holes gives another error
            return error.errno == errno.ENXIO

    def _check_ranges(self) -> None:
        """Check that two names share all of their bytes or none."""
        reached, before = 0, None
        for tensor in sorted(self.tensors, key=lambda tensor: (tensor.storage, tensor.num_bytes)):
            if tensor.num_bytes == 0:
                continue
            if before is not None and tensor.storage < reached:
                is_tied = (tensor.storage, tensor.num_bytes) == (before.storage, before.num_bytes)
                if not is_tied:
                    raise CheckpointError(
                        f"{self.path}: {before.name} and {tensor.name} share some of their bytes. Fetch it again."
                    )
            reached, before = max(reached, tensor.storage + tensor.num_bytes), tensor

    def read_bytes(self, name: str, offset: int, size: int) -> bytes:
        """`size` raw bytes of a tensor from `offset` on. Raises `OSError` if the file ends before."""
        content = bytearray(size)
        self._fill(memoryview(content), name, offset)
        return bytes(content)

    def read(self, name: str, start: int, stop: int) -> StoredArray:
        """Elements `start` to `stop` of the flattened tensor, as stored. Raises `OSError` if the file ends before."""
        values: StoredArray = np.empty(stop - start, dtype=self._entries[name][0])
        self._fill(values.view(np.uint8).data, name, start * values.itemsize)
        return values

    def _fill(self, view: memoryview, name: str, offset: int) -> None:
        """Read a tensor's bytes from `offset` on, however few one call gives: 2 GiB at most, and less over some networks."""
        begin = self._data_begin + self._entries[name][1] + offset
        done = 0
        while done < len(view):
            count = os.preadv(self._descriptor, [view[done:]], begin + done)
            if count == 0:
                raise OSError(f"{self.path} ended at byte {begin + done}, inside {name}: it was cut while it was being read")
            done += count
