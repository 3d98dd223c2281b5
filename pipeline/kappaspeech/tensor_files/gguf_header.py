"""A GGUF file's table of contents, read with every length checked against the file's own.

https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import math
import os
import struct
from dataclasses import dataclass
from typing import Any, BinaryIO

_MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_ALIGNMENT_BYTES = 32
_MAX_STRING_BYTES = 64 << 20
_MAX_DIMENSIONS = 8
# the largest vocabulary has a quarter of a million
_MAX_STRINGS = 10_000_000
# type number → struct's letter
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
# the least bytes of a tensor's entry and of a field
_LEAST_TENSOR_BYTES, _LEAST_FIELD_BYTES = 24, 13


@dataclass(frozen=True)
class GgufEntry:
    """A tensor's entry: `shape` with the fastest dimension last, its kind's number, and its first byte's place in the file."""

    name: str
    shape: tuple[int, ...]
    kind: int
    begin: int


@dataclass(frozen=True)
class GgufHeader:
    """Fields of one value, by key, and the entries; arrays are passed over."""

    fields: dict[str, Any]
    entries: list[GgufEntry]


def read_header(file: BinaryIO) -> GgufHeader:
    """The table of contents of an open file. Raises `ValueError` if it makes no sense."""
    return _Reader(file).read()


class _Reader:
    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._num_bytes = os.fstat(file.fileno()).st_size

    def read(self) -> GgufHeader:
        if self._take(4) != _MAGIC:
            raise ValueError("it doesn't begin with GGUF")
        version = self._number("I")
        if version & 0xFFFF == 0:
            raise ValueError("its bytes are in big-endian order, which isn't read")
        if version not in _VERSIONS:
            raise ValueError(f"it is of version {version}; versions {_VERSIONS[0]} and {_VERSIONS[1]} are read")
        num_tensors, num_fields = self._number("Q"), self._number("Q")
        if num_tensors * _LEAST_TENSOR_BYTES + num_fields * _LEAST_FIELD_BYTES > self._num_bytes:
            raise ValueError(f"it says that it has {num_tensors} tensors and {num_fields} fields, more than fit into it")
        fields = {}
        for _ in range(num_fields):
            key = self._string()
            value = self._value(self._number("I"))
            if key in fields:
                raise ValueError(f"it has the field {key!r} twice")
            fields[key] = value
        entries = [self._entry() for _ in range(num_tensors)]
        alignment = fields.get("general.alignment", _ALIGNMENT_BYTES)
        if type(alignment) is not int or alignment < 1 or alignment & (alignment - 1):
            raise ValueError(f"its alignment is {alignment!r}, which is no power of two")
        begin = -(-self._file.tell() // alignment) * alignment
        return GgufHeader(fields, [GgufEntry(e.name, e.shape, e.kind, begin + e.begin) for e in entries])

    def _entry(self) -> GgufEntry:
        name = self._string()
        num_dimensions = self._number("I")
        if num_dimensions > _MAX_DIMENSIONS:
            raise ValueError(f"{name} has {num_dimensions} dimensions")
        shape = tuple(self._number("Q") for _ in range(num_dimensions))
        kind, begin = self._number("I"), self._number("Q")
        if math.prod(shape) >= 2**63 or begin >= 2**63:
            raise ValueError(f"{name} has shape {shape[::-1]} at byte {begin}, more than fit into the file")
        return GgufEntry(name, shape[::-1], kind, begin)

    def _value(self, kind: int) -> Any:
        if kind == _STRING:
            return self._string()
        if kind == _ARRAY:
            return self._pass_over_array()
        if kind not in _SCALARS:
            raise ValueError(f"it has a field of the unknown type {kind}")
        return self._number(_SCALARS[kind])

    def _pass_over_array(self) -> None:
        kind, length = self._number("I"), self._number("Q")
        if kind in _SCALARS:
            self._pass_over(length * struct.calcsize("<" + _SCALARS[kind]))
        elif kind == _STRING and length <= _MAX_STRINGS:
            for _ in range(length):
                self._pass_over(self._number("Q"))
        else:
            raise ValueError(f"it has an array of {length} of type {kind}")

    def _string(self) -> str:
        length = self._number("Q")
        if length > _MAX_STRING_BYTES:
            raise ValueError(f"it has a text of {length} bytes")
        return self._take(length).decode("utf-8")

    def _number(self, letter: str) -> Any:
        return struct.unpack("<" + letter, self._take(struct.calcsize("<" + letter)))[0]

    def _take(self, size: int) -> bytes:
        content = self._file.read(size)
        if len(content) < size:
            raise ValueError(f"it ends at byte {self._num_bytes}, inside its table of contents")
        return content

    def _pass_over(self, size: int) -> None:
        if size > self._num_bytes - self._file.tell():
            raise ValueError(f"it ends at byte {self._num_bytes}, inside its table of contents")
        self._file.seek(size, os.SEEK_CUR)
