"""Samples of many shards as columns: a table of ten million fits where as many objects wouldn't, and opens at once.

A merged index is such a table in a safetensors file that is mapped, not read: what isn't looked at takes no memory.
"""

from __future__ import annotations

import json
import mmap
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kappaspeech.artefacts import digest_json, write_with
from kappaspeech.errors import DataError
from kappaspeech.outside import describe, open_regular, parse_json
from kappaspeech.speech.patterns import shard_name
from kappaspeech.speech.recordings import LONGEST_SECONDS
from kappaspeech.speech.shards import SampleEntry, ShardIndex, ShardStamp, known_seconds
from kappaspeech.speech.source import is_remote
from kappaspeech.tensor_files.safetensors_header import FORMATS, HeaderEntry, parse_entry, read_header

MERGED_SUFFIX = ".index"
_SCHEMA_VERSION = "1"
_MAX_HEADER_BYTES = 1 << 30
_COLUMNS: dict[str, np.dtype[Any]] = {
    "seconds": np.dtype("<f4"),
    # two bytes each if there are more than 256
    "language": np.dtype("<u1"),
    "audio_offset": np.dtype("<i8"),
    "audio_bytes": np.dtype("<i8"),
    "text_offset": np.dtype("<i8"),
    "text_bytes": np.dtype("<i8"),
    "text_is_json": np.dtype("<u1"),
    "key_end": np.dtype("<i8"),
    "key_bytes": np.dtype("<u1"),
    "shard_end": np.dtype("<i8"),
}
_STORED_AS = {np.dtype(FORMATS[code].array): code for code in ("F32", "U8", "U16", "I64")}
_WIDE_LANGUAGE = np.dtype("<u2")


@dataclass(frozen=True)
class SampleTable:
    """`columns` of N samples: as in `_COLUMNS`, (N,) each, but for `key_bytes` (keys one after the other) and `shard_end`
    (one past each shard's last sample). `shards` names each shard with what it was when it was indexed."""

    shards: tuple[tuple[str, ShardStamp], ...]
    languages: tuple[str, ...]
    columns: Mapping[str, NDArray[Any]]
    known_fingerprint: str | None = None

    def __len__(self) -> int:
        return len(self.columns["seconds"])

    @cached_property
    def seconds(self) -> NDArray[np.float32]:
        """The length of every sample, (N,); 0 for one that isn't known."""
        seconds = self.columns["seconds"]
        is_known = (seconds > 0) & (seconds <= LONGEST_SECONDS)
        return seconds if is_known.all() else np.where(is_known, seconds, np.float32(0))

    def shard_of(self, row: int) -> int:
        """The number of the shard that holds a sample."""
        return int(np.searchsorted(self.columns["shard_end"], row, side="right"))

    def entry(self, row: int) -> SampleEntry:
        """One sample, as an index beside its shard lists it. Raises `DataError` if the table is damaged."""
        columns = self.columns
        begin, end = int(columns["key_end"][row - 1]) if row else 0, int(columns["key_end"][row])
        try:
            if not 0 <= begin <= end <= len(columns["key_bytes"]):
                raise ValueError(f"it lies at bytes {begin} to {end}")
            key = columns["key_bytes"][begin:end].tobytes().decode()
        except ValueError as error:
            raise DataError(f"Sample {row} of a merged index has no key ({error}): make the index again.") from error
        return SampleEntry(
            key=key,
            seconds=known_seconds(float(columns["seconds"][row])),
            language=self.languages[int(columns["language"][row])],
            audio_offset=int(columns["audio_offset"][row]),
            audio_bytes=int(columns["audio_bytes"][row]),
            text_offset=int(columns["text_offset"][row]),
            text_bytes=int(columns["text_bytes"][row]),
            text_is_json=bool(columns["text_is_json"][row]),
        )

    def shard_entries(self, shard: int) -> list[SampleEntry]:
        """All samples of a shard."""
        begin = int(self.columns["shard_end"][shard - 1]) if shard else 0
        return [self.entry(row) for row in range(begin, int(self.columns["shard_end"][shard]))]

    @cached_property
    def fingerprint(self) -> str:
        """Digest of which samples there are, where, and how long: not of the folder that they lie in."""
        if self.known_fingerprint is not None:
            return self.known_fingerprint
        import hashlib

        total = hashlib.sha256()
        for name in _COLUMNS:
            total.update(np.ascontiguousarray(self.columns[name]).tobytes())
        names = [shard_name(where) for where, _ in self.shards]
        return digest_json([names, self.languages, total.hexdigest()])

    @staticmethod
    def of(shards: Sequence[ShardIndex]) -> SampleTable:
        """The samples of indexed shards, in their order."""
        samples = [sample for shard in shards for sample in shard.samples]
        languages = tuple(sorted({sample.language for sample in samples}))
        number = {language: place for place, language in enumerate(languages)}
        keys = [sample.key.encode() for sample in samples]
        values: dict[str, Any] = {
            "language": [number[sample.language] for sample in samples],
            "key_end": np.cumsum([len(key) for key in keys]),
            "key_bytes": np.frombuffer(b"".join(keys), dtype=np.uint8),
            "shard_end": np.cumsum([len(shard.samples) for shard in shards]),
        }
        for name in _COLUMNS.keys() - values.keys():
            values[name] = [getattr(sample, name) for sample in samples]
        types = {**_COLUMNS, "language": _COLUMNS["language"] if len(languages) <= 256 else _WIDE_LANGUAGE}
        columns = {name: np.asarray(values[name], dtype=dtype) for name, dtype in types.items()}
        return SampleTable(tuple((shard.where, shard.stamp) for shard in shards), languages, columns)


def write_merged(table: SampleTable, path: Path) -> None:
    """Write a merged index. Local shards are named relative to it if they lie beside or below it."""
    from safetensors.numpy import save_file

    if path.suffix != MERGED_SUFFIX:
        raise DataError(f"{path}: a merged index is named {MERGED_SUFFIX}.")
    folder = path.resolve().parent
    shards = [[_relative(where, folder), asdict(stamp)] for where, stamp in table.shards]
    content = {
        "schema_version": _SCHEMA_VERSION,
        "shards": shards,
        "languages": table.languages,
        "fingerprint": table.fingerprint,
    }
    metadata = {"index": json.dumps(content, ensure_ascii=False)}
    columns = {name: np.ascontiguousarray(table.columns[name]) for name in _COLUMNS}
    write_with(path, lambda temporary: save_file(columns, temporary, metadata=metadata))


def read_merged(path: Path) -> SampleTable:
    """Map a merged index. Raises `DataError` if it isn't one."""
    try:
        with os.fdopen(open_regular(path), "rb") as file:
            header = read_header(file.fileno(), most_bytes=_MAX_HEADER_BYTES)
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        content = parse_json(header.metadata["index"].encode())
        if content["schema_version"] != _SCHEMA_VERSION:
            raise ValueError(f"version {content['schema_version']}")
        columns = {name: _map_column(mapped, header.data_begin, parse_entry(header.entries[name]), name) for name in _COLUMNS}
        shards = tuple((_absolute(where, path.resolve().parent), _parse_stamp(stamp)) for where, stamp in content["shards"])
        table = SampleTable(shards, tuple(content["languages"]), columns, content["fingerprint"])
        _check(table)
        return table
    except FileNotFoundError:
        raise DataError(f"There is no merged index at {path}. Make it with `kappaspeech index SHARDS --output {path}`.") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{path} is no merged index ({describe(error)}). Make it again with `kappaspeech index`.") from error


def _map_column(mapped: mmap.mmap, start: int, entry: HeaderEntry, name: str) -> NDArray[Any]:
    dtype = _COLUMNS[name]
    if name == "language" and entry.dtype == _STORED_AS[_WIDE_LANGUAGE]:
        dtype = _WIDE_LANGUAGE
    num_bytes = entry.end - entry.begin
    if entry.end > len(mapped) - start:
        raise ValueError(f"column {name} lies at bytes {entry.begin} to {entry.end}")
    if entry.dtype != _STORED_AS[dtype] or num_bytes % dtype.itemsize:
        raise ValueError(f"column {name} is of {entry.dtype!r}")
    return np.frombuffer(mapped, dtype, num_bytes // dtype.itemsize, start + entry.begin)


def _parse_stamp(stamp: dict[str, Any]) -> ShardStamp:
    parsed = ShardStamp(**stamp)
    if type(parsed.num_bytes) is not int or not isinstance(parsed.stamp, str) or not isinstance(parsed.digest, str):
        raise ValueError(f"a shard is stamped {stamp!r}")
    return parsed


def _check(table: SampleTable) -> None:
    """Raise `ValueError` if columns don't fit each other; what holds of single rows, `SampleTable.entry` checks."""
    if not isinstance(table.known_fingerprint, str) or not all(isinstance(name, str) for name in table.languages):
        raise ValueError("its fingerprint and languages are no texts")
    columns = table.columns
    wrong = [name for name in columns if name not in ("key_bytes", "shard_end") and len(columns[name]) != len(table)]
    if wrong or len(columns["shard_end"]) != len(table.shards):
        raise ValueError(f"column {(*wrong, 'shard_end')[0]} is of another length")
    ends = np.concatenate([[0], columns["shard_end"]])
    last_key = int(columns["key_end"][-1]) if len(table) else 0
    if (np.diff(ends) < 0).any() or ends[-1] != len(table) or last_key != len(columns["key_bytes"]):
        raise ValueError("its columns end elsewhere than they say")
    if len(table) and int(columns["language"].max()) >= len(table.languages):
        raise ValueError("it has samples of more languages than it names")


def _relative(where: str, folder: Path) -> str:
    if is_remote(where):
        return where
    absolute = Path(where).resolve()
    return str(absolute.relative_to(folder)) if absolute.is_relative_to(folder) else str(absolute)


def _absolute(where: str, folder: Path) -> str:
    return where if is_remote(where) else str(folder / where)
