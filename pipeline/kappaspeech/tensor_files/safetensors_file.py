"""One safetensors file: its header, and any range of a tensor's elements.

Read with `pread` and not through a map: a file that shrinks under a scan then raises an error that can be told, where a map
would kill the process. https://github.com/huggingface/safetensors#format
"""

from __future__ import annotations

import errno
import math
import os
import struct
from pathlib import Path
from typing import Any

import numpy as np

from kappaspeech.errors import CheckpointError
from kappaspeech.outside import explained, open_regular, parse_json
from kappaspeech.tensor_files.dtypes import StoredArray
from kappaspeech.tensor_files.tensor_file import StoredTensor

_MAX_HEADER_BYTES = 100_000_000
_MAX_DIMENSIONS = 64
# a hole as large as this was never written; where a file system makes holes of zeros, smaller ones may be weights
_MIN_HOLE_BYTES = 64 << 20
_BLOCK_BYTES = 1 << 20
# The format's names; what isn't here (4- and 6-bit formats) is listed under its own name and never read.
_DTYPES = {
    "F64": ("float64", "<f8"),
    "F32": ("float32", "<f4"),
    "F16": ("float16", "<f2"),
    "BF16": ("bfloat16", "<u2"),
    "F8_E4M3": ("float8_e4m3fn", "u1"),
    "F8_E5M2": ("float8_e5m2", "u1"),
    "F8_E8M0": ("float8_e8m0fnu", "u1"),
    "I64": ("int64", "<i8"),
    "I32": ("int32", "<i4"),
    "I16": ("int16", "<i2"),
    "I8": ("int8", "i1"),
    "U8": ("uint8", "u1"),
    "BOOL": ("bool", "u1"),
}


class SafetensorsFile:
    """The header is read at once, tensors when asked for. Raises `CheckpointError` on a file that is torn or no safetensors."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with explained(f"{path} can't be read as safetensors", "Fetch it again.", kind=CheckpointError):
            self._descriptor = open_regular(path)
            self._num_bytes = os.fstat(self._descriptor).st_size
            header = self._read_header()
        self._entries: dict[str, tuple[str, int]] = {}
        self.tensors = [self._parse(name, entry) for name, entry in header.items() if name != "__metadata__"]
        self._check_ranges()

    def __del__(self) -> None:
        if hasattr(self, "_descriptor"):
            os.close(self._descriptor)

    def _read_header(self) -> dict[str, Any]:
        prefix = os.pread(self._descriptor, 8, 0)
        length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else -1
        if not 2 <= length <= min(_MAX_HEADER_BYTES, self._num_bytes - 8):
            raise CheckpointError(
                f"{self.path} is no whole safetensors file: it has {self._num_bytes} bytes and announces a header of {length}. "
                "Fetch it again (a git-lfs pointer of a few lines looks like this too)."
            )
        try:
            header = parse_json(os.pread(self._descriptor, length, 8), is_unique=True)
        except ValueError as error:
            raise CheckpointError(f"{self.path} is no safetensors file: its header is no JSON to go by ({error}).") from error
        if not isinstance(header, dict):
            raise CheckpointError(f"{self.path} is no safetensors file: its header is a {type(header).__name__}.")
        self._data_begin = 8 + length
        return header

    def _parse(self, name: str, entry: Any) -> StoredTensor:
        try:
            stored, shape, (begin, end) = entry["dtype"], tuple(entry["shape"]), entry["data_offsets"]
            numbers = [*shape, begin, end]
            is_sound = isinstance(stored, str) and all(type(number) is int and 0 <= number < 2**63 for number in numbers)
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError(f"{self.path}: the header's entry for {name} can't be understood ({error!r}).") from error
        if not is_sound or len(shape) > _MAX_DIMENSIONS or begin > end:
            raise CheckpointError(
                f"{self.path}: the header's entry for {name} can't be understood: a dtype's name, a shape of whole numbers and "
                "the two ends of its bytes are expected. Fetch it again."
            )
        dtype, array = _DTYPES.get(stored, (stored.lower(), ""))
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
            # no data beyond; a file system that knows no holes says something else
            return error.errno == errno.ENXIO

    def _check_ranges(self) -> None:
        """Two names may share all of their bytes, and none share some."""
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
        """`size` raw bytes of a tensor from `offset` on. Raises `OSError`."""
        return os.pread(self._descriptor, size, self._data_begin + self._entries[name][1] + offset)

    def read(self, name: str, start: int, stop: int) -> StoredArray:
        """Elements `start` to `stop` of the flattened tensor, as stored. Raises `OSError` where the file ends before."""
        array, begin = self._entries[name]
        values: StoredArray = np.empty(stop - start, dtype=array)
        view = values.view(np.uint8).data
        offset = self._data_begin + begin + start * values.itemsize
        done = 0
        while done < len(view):
            count = os.preadv(self._descriptor, [view[done:]], offset + done)
            if count == 0:
                raise OSError(f"{self.path} ended at byte {offset + done}, inside {name}: it was cut while it was being read")
            done += count
        return values
