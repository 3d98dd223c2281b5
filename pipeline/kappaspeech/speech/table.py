"""Samples of many shards as columns: a table of ten million fits where as many objects wouldn't, and opens at once.

A merged index is such a table in a safetensors file that is mapped, not read: what isn't looked at takes no memory.
"""

from __future__ import annotations

import json
import math
import mmap
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kappaspeech.artefacts import digest_json, write_with
from kappaspeech.errors import DataError
from kappaspeech.outputs import write_new
from kappaspeech.outside import describe, open_regular, parse_json
from kappaspeech.speech.listings import Listing
from kappaspeech.speech.patterns import shard_name
from kappaspeech.speech.recordings import LONGEST_SECONDS
from kappaspeech.speech.shards import SampleEntry, ShardIndex, ShardStamp, known_seconds
from kappaspeech.speech.source import is_remote
from kappaspeech.tensor_files.safetensors_header import FORMATS, HeaderEntry, parse_entry, read_header

MERGED_SUFFIX = ".index"
_SCHEMA_VERSION, _LISTING_VERSION = "1", "2"
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
# of samples whose list lies beside the tar; NaN for a part without an end
_LISTING_COLUMNS: dict[str, np.dtype[Any]] = {
    "begin_seconds": np.dtype("<f8"),
    "part_seconds": np.dtype("<f8"),
    "member_end": np.dtype("<i8"),
    "member_bytes": np.dtype("<u1"),
    "transcript_end": np.dtype("<i8"),
    "transcript_bytes": np.dtype("<u1"),
}
# of shards that were indexed sample by sample
_HEAD = "head_digest"
_HEAD_TYPE = np.dtype("<i8")
_TEXTS = ("key", "member", "transcript")
_STORED_AS = {np.dtype(FORMATS[code].array): code for code in ("F32", "F64", "U8", "U16", "I64")}
_WIDE_LANGUAGE = np.dtype("<u2")


@dataclass(frozen=True)
class SampleTable:
    """`columns` of N samples: as in `_COLUMNS`, (N,) each, but for `key_bytes` (keys one after the other) and `shard_end`
    (one past each shard's last sample); also `head_digest` if indices noted it. `shards` names each shard with what it was when
    it was indexed. With lists beside the tars there are `_LISTING_COLUMNS` too, and `source` says what state of the data set
    it was made of."""

    shards: tuple[tuple[str, ShardStamp], ...]
    languages: tuple[str, ...]
    columns: Mapping[str, NDArray[Any]]
    known_fingerprint: str | None = None
    source: str = ""

    @property
    def has_listings(self) -> bool:
        """Return whether texts are in the table and not in the tars."""
        return "transcript_end" in self.columns

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
        return SampleEntry(
            key=self._text("key", row),
            seconds=known_seconds(float(columns["seconds"][row])),
            language=self.languages[int(columns["language"][row])],
            audio_offset=int(columns["audio_offset"][row]),
            audio_bytes=int(columns["audio_bytes"][row]),
            text_offset=int(columns["text_offset"][row]),
            text_bytes=int(columns["text_bytes"][row]),
            text_is_json=bool(columns["text_is_json"][row]),
            listing=self._listing(row) if self.has_listings else None,
            head_digest=int(columns[_HEAD][row]) if _HEAD in columns else 0,
        )

    def _listing(self, row: int) -> Listing:
        begin, seconds = (float(self.columns[name][row]) for name in ("begin_seconds", "part_seconds"))
        if not 0 <= begin <= LONGEST_SECONDS or not (math.isnan(seconds) or 0 < seconds <= LONGEST_SECONDS):
            raise DataError(
                f"Sample {row} of a merged index is a part from {begin} s on, {seconds} s long: make the index again."
            )
        return Listing(self._text("member", row), self._text("transcript", row), begin, None if math.isnan(seconds) else seconds)

    def _text(self, name: str, row: int) -> str:
        """A sample's text of one of `_TEXTS`. Raises `DataError` if it can't be one."""
        ends, content = self.columns[f"{name}_end"], self.columns[f"{name}_bytes"]
        begin, end = int(ends[row - 1]) if row else 0, int(ends[row])
        try:
            if not 0 <= begin <= end <= len(content):
                raise ValueError(f"it lies at bytes {begin} to {end}")
            return content[begin:end].tobytes().decode()
        except ValueError as error:
            raise DataError(f"Sample {row} of a merged index has no {name} ({error}): make the index again.") from error

    def shard_entries(self, shard: int) -> list[SampleEntry]:
        """All samples of a shard."""
        begin = int(self.columns["shard_end"][shard - 1]) if shard else 0
        return [self.entry(row) for row in range(begin, int(self.columns["shard_end"][shard]))]

    def count_hours(self) -> dict[str, float]:
        """Hours of audio by language."""
        seconds = np.bincount(self.columns["language"], weights=self.seconds, minlength=len(self.languages))
        return {language: float(total) / 3600 for language, total in zip(self.languages, seconds, strict=True)}

    @cached_property
    def fingerprint(self) -> str:
        """Digest of which samples there are, where, and how long: not of the folder that they lie in."""
        if self.known_fingerprint is not None:
            return self.known_fingerprint
        import hashlib

        total = hashlib.sha256()
        for name in _columns_of(listed=self.has_listings):
            total.update(np.ascontiguousarray(self.columns[name]).tobytes())
        names = [shard_name(where) for where, _ in self.shards]
        return digest_json([names, self.languages, total.hexdigest()])

    @staticmethod
    def of(shards: Sequence[ShardIndex], *, source: str = "") -> SampleTable:
        """The samples of indexed shards, in their order. Raises `DataError` if some have lists beside them and some have none, or
        if a shard is named twice."""
        repeated = next((where for where, count in Counter(shard.where for shard in shards).items() if count > 1), None)
        if repeated is not None:
            raise DataError(
                f"{repeated} is named twice in one data set, so its samples would count twice. Name it once; a set comes more "
                "often by its weight."
            )
        samples = [sample for shard in shards for sample in shard.samples]
        languages = tuple(sorted({sample.language for sample in samples}))
        number = {language: place for place, language in enumerate(languages)}
        values: dict[str, Any] = {
            "language": [number[sample.language] for sample in samples],
            **_pack_texts("key", [sample.key for sample in samples]),
            "shard_end": np.cumsum([len(shard.samples) for shard in shards]),
        }
        for name in _COLUMNS.keys() - values.keys():
            values[name] = [getattr(sample, name) for sample in samples]
        listings = [sample.listing for sample in samples if sample.listing is not None]
        if listings:
            if len(listings) < len(samples):
                raise DataError("Shards and data sets with lists beside their tars don't go into one index: make one of each.")
            values |= _pack_texts("member", [listing.member for listing in listings])
            values |= _pack_texts("transcript", [listing.transcript for listing in listings])
            values["begin_seconds"] = [listing.begin_seconds for listing in listings]
            values["part_seconds"] = [math.nan if listing.seconds is None else listing.seconds for listing in listings]
        types = _columns_of(listed=bool(listings))
        if not listings and any(sample.head_digest for sample in samples):
            values[_HEAD], types[_HEAD] = [sample.head_digest for sample in samples], _HEAD_TYPE
        types["language"] = _COLUMNS["language"] if len(languages) <= 256 else _WIDE_LANGUAGE
        columns = {name: np.asarray(values[name], dtype=dtype) for name, dtype in types.items()}
        return SampleTable(tuple((shard.where, shard.stamp) for shard in shards), languages, columns, source=source)


def _columns_of(*, listed: bool) -> dict[str, np.dtype[Any]]:
    return {**_COLUMNS, **(_LISTING_COLUMNS if listed else {})}


def _pack_texts(name: str, texts: Sequence[str]) -> dict[str, Any]:
    """The columns of one of `_TEXTS`."""
    encoded = [text.encode() for text in texts]
    return {
        f"{name}_end": np.cumsum([len(text) for text in encoded]),
        f"{name}_bytes": np.frombuffer(b"".join(encoded), dtype=np.uint8),
    }


def write_merged(table: SampleTable, path: Path, *, is_new: bool = False) -> None:
    """Write a merged index. Local shards are named relative to it if they lie beside or below it.

    One that `is_new` replaces no other: raises `FileExistsError` if another process has written one meanwhile.
    """
    from safetensors.numpy import save_file

    if path.suffix != MERGED_SUFFIX:
        raise DataError(f"{path}: a merged index is named {MERGED_SUFFIX}.")
    folder = path.resolve().parent
    shards = [[_relative(where, folder), asdict(stamp)] for where, stamp in table.shards]
    content = {
        # versions that know of no lists must not take such an index for one of shards
        "schema_version": _LISTING_VERSION if table.has_listings else _SCHEMA_VERSION,
        "shards": shards,
        "languages": table.languages,
        "fingerprint": table.fingerprint,
        **({"source": table.source} if table.has_listings else {}),
    }
    metadata = {"index": json.dumps(content, ensure_ascii=False)}
    columns = {name: np.ascontiguousarray(column) for name, column in table.columns.items()}
    write = write_new if is_new else write_with
    write(path, lambda temporary: save_file(columns, temporary, metadata=metadata))


def read_merged(path: Path) -> SampleTable:
    """Map a merged index. Raises `DataError` if it isn't one."""
    try:
        with os.fdopen(open_regular(path), "rb") as file:
            header = read_header(file.fileno(), most_bytes=_MAX_HEADER_BYTES)
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        content = parse_json(header.metadata["index"].encode())
        version = content["schema_version"]
        if version not in (_SCHEMA_VERSION, _LISTING_VERSION):
            raise ValueError(f"version {version}")
        types = _columns_of(listed=version == _LISTING_VERSION)
        if _HEAD in header.entries:
            types[_HEAD] = _HEAD_TYPE
        entries = {name: parse_entry(header.entries[name]) for name in types}
        columns = {name: _map_column(mapped, header.data_begin, entries[name], name, dtype) for name, dtype in types.items()}
        shards = tuple((_absolute(where, path.resolve().parent), _parse_stamp(stamp)) for where, stamp in content["shards"])
        source = str(content.get("source", ""))
        table = SampleTable(shards, tuple(content["languages"]), columns, content["fingerprint"], source)
        _check(table)
        return table
    except FileNotFoundError:
        raise DataError(f"There is no merged index at {path}. Make it with `kappaspeech index SHARDS --output {path}`.") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{path} is no merged index ({describe(error)}). Make it again with `kappaspeech index`.") from error


def _map_column(mapped: mmap.mmap, start: int, entry: HeaderEntry, name: str, dtype: np.dtype[Any]) -> NDArray[Any]:
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
    texts = [name for name in _TEXTS if f"{name}_bytes" in columns]
    others = {"shard_end", *(f"{name}_bytes" for name in texts)}
    wrong = [name for name in columns if name not in others and len(columns[name]) != len(table)]
    if wrong or len(columns["shard_end"]) != len(table.shards):
        raise ValueError(f"column {(*wrong, 'shard_end')[0]} is of another length")
    ends = np.concatenate([[0], columns["shard_end"]])
    cut = [name for name in texts if len(columns[f"{name}_bytes"]) != (columns[f"{name}_end"][-1] if len(table) else 0)]
    if (np.diff(ends) < 0).any() or ends[-1] != len(table) or cut:
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
