"""The header of a safetensors file, read and written: https://github.com/huggingface/safetensors#format"""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from kappaspeech.outside import parse_json

MAX_HEADER_BYTES = 100_000_000
_PREFIX = struct.Struct("<Q")
_ALIGNMENT_BYTES = 8
_MAX_DIMENSIONS = 64
_METADATA = "__metadata__"


class StoredFormat(NamedTuple):
    """A number format's name in this project, and the numpy dtype its bytes are read as."""

    name: str
    array: str


# By the format's own names; a format that isn't here (4- and 6-bit formats) is listed under its own name and never read.
FORMATS = {
    "F64": StoredFormat("float64", "<f8"),
    "F32": StoredFormat("float32", "<f4"),
    "F16": StoredFormat("float16", "<f2"),
    "BF16": StoredFormat("bfloat16", "<u2"),
    "F8_E4M3": StoredFormat("float8_e4m3fn", "u1"),
    "F8_E5M2": StoredFormat("float8_e5m2", "u1"),
    "F8_E8M0": StoredFormat("float8_e8m0fnu", "u1"),
    "I64": StoredFormat("int64", "<i8"),
    "I32": StoredFormat("int32", "<i4"),
    "I16": StoredFormat("int16", "<i2"),
    "I8": StoredFormat("int8", "i1"),
    # digests of checkpoints that have been scanned hold this name
    "U16": StoredFormat("u16", "<u2"),
    "U8": StoredFormat("uint8", "u1"),
    "BOOL": StoredFormat("bool", "u1"),
}


class TornHeaderError(ValueError):
    """A file that is shorter than the header it announces, or announces none."""


@dataclass(frozen=True)
class HeaderEntry:
    """A tensor as the header lists it: `dtype` by the format's own name, its bytes counted from the first tensor's."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


@dataclass(frozen=True)
class Header:
    """`entries` as they are found, for `parse_entry`; `data_begin` is the place in the file at which the tensors' bytes begin."""

    entries: dict[str, Any]
    metadata: Any
    data_begin: int


def find_data(descriptor: int, *, most_bytes: int = MAX_HEADER_BYTES) -> int:
    """The place in an open file of the first tensor's bytes. Raises `TornHeaderError`, also for a header of over `most_bytes`."""
    num_bytes = os.fstat(descriptor).st_size
    prefix = os.pread(descriptor, _PREFIX.size, 0)
    length: int = _PREFIX.unpack(prefix)[0] if len(prefix) == _PREFIX.size else -1
    if not 2 <= length <= min(most_bytes, num_bytes - _PREFIX.size):
        raise TornHeaderError(f"it has {num_bytes} bytes and announces a header of {length}")
    return _PREFIX.size + length


def read_header(descriptor: int, *, most_bytes: int = MAX_HEADER_BYTES) -> Header:
    """The header of an open file. Raises `TornHeaderError`, `ValueError` if it is no header, and `OSError`."""
    data_begin = find_data(descriptor, most_bytes=most_bytes)
    try:
        entries = parse_json(os.pread(descriptor, data_begin - _PREFIX.size, _PREFIX.size), is_unique=True)
    except ValueError as error:
        raise ValueError(f"its header is no JSON to go by ({error})") from error
    if not isinstance(entries, dict):
        raise ValueError(f"its header is a {type(entries).__name__}")
    metadata = entries.pop(_METADATA, None)
    return Header(entries, metadata, data_begin)


def parse_entry(described: Any) -> HeaderEntry:
    """A tensor's entry. Raises `ValueError` if it makes no sense; the caller knows if the file is long enough."""
    try:
        dtype, shape, (begin, end) = described["dtype"], tuple(described["shape"]), described["data_offsets"]
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(_EXPECTED) from error
    is_sound = isinstance(dtype, str) and all(type(number) is int and 0 <= number < 2**63 for number in (*shape, begin, end))
    if not is_sound or len(shape) > _MAX_DIMENSIONS or begin > end:
        raise ValueError(_EXPECTED)
    return HeaderEntry(dtype, shape, begin, end)


def pack_header(entries: Mapping[str, HeaderEntry], metadata: Mapping[str, str] | None = None) -> bytes:
    """The beginning of a file, up to the tensors' bytes."""
    header: dict[str, Any] = {_METADATA: dict(metadata)} if metadata else {}
    for name, entry in entries.items():
        header[name] = {"dtype": entry.dtype, "shape": list(entry.shape), "data_offsets": [entry.begin, entry.end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _ALIGNMENT_BYTES)
    return _PREFIX.pack(len(text)) + text


_EXPECTED = "a dtype's name, a shape of whole numbers and the two ends of its bytes are expected"
