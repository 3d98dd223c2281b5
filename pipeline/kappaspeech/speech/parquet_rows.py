"""Parquet files with speech in them, as the Hugging Face hub keeps data sets: their columns, and the audio of their rows."""

from __future__ import annotations

import bisect
import itertools
from functools import lru_cache
from pathlib import Path, PurePath
from typing import Any

from kappaspeech.errors import DataError
from kappaspeech.needed_packages import need
from kappaspeech.outside import check_regular, parse_json, read_regular

PARQUET_SUFFIX = ".parquet"
# what `datasets` writes of its features into a file
_FEATURES = b"huggingface"
# no recording is as small as that; a value that is said to come a thousand million times takes a few bytes, and then all memory
_MOST_ROWS_PER_BYTE = 16


@lru_cache(maxsize=2)
def open_parquet(path: Path) -> Any:
    """A Parquet file with its footer read. Raises `DataError`."""
    need(f"Reading {path}", "pyarrow", kind=DataError)
    import pyarrow
    from pyarrow import parquet

    try:
        status = path.stat()
        check_regular(status)
        file = parquet.ParquetFile(path)
        if file.metadata.num_rows > _MOST_ROWS_PER_BYTE * status.st_size:
            raise ValueError(f"{file.metadata.num_rows:,} rows can't lie in {status.st_size:,} bytes")
        # decoded when it is first asked for
        assert file.schema_arrow is not None
        return file
    except (OSError, ValueError, LookupError, pyarrow.ArrowException) as error:
        raise DataError(f"{path} can't be read as Parquet: {error}. Fetch it again.") from error


def audio_column(path: Path) -> str:
    """The name of the column of audio: structs of `bytes` and `path`. Raises `DataError` if there is none."""
    from pyarrow import types

    schema = open_parquet(path).schema_arrow
    structs = [field for field in schema if types.is_struct(field.type) and field.type.get_field_index("bytes") >= 0]
    binary = [field.name for field in structs if _is_binary(field.type.field("bytes").type)]
    if not binary:
        raise DataError(f"{path} has no column of audio, structs of bytes and path; it has {', '.join(schema.names)}.")
    return "audio" if "audio" in binary else str(binary[0])


def _is_binary(kind: Any) -> bool:
    from pyarrow import types

    return bool(types.is_binary(kind) or types.is_large_binary(kind))


def group_ends(path: Path) -> list[int]:
    """The row after the last of each row group."""
    metadata = open_parquet(path).metadata
    return list(itertools.accumulate(metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)))


def read_column(path: Path, column: str) -> list[Any]:
    """The values of a column; the names if it holds classes by number. Raises `DataError`."""
    import pyarrow

    try:
        values = open_parquet(path).read(columns=[column]).column(0).to_pylist()
        if len(values) != (group_ends(path) or [0])[-1]:
            raise ValueError("it has other rows than its row groups")
    except (OSError, ValueError, LookupError, pyarrow.ArrowException) as error:
        raise DataError(f"{path} can't be read: column {column}: {error}. Fetch it again.") from error
    names = _class_names(path, column)
    return [names[value] if type(value) is int and 0 <= value < len(names) else value for value in values]


def _class_names(path: Path, column: str) -> list[Any]:
    try:
        described = parse_json((open_parquet(path).schema_arrow.metadata or {})[_FEATURES])
        names = described["info"]["features"][column]["names"]
    except (KeyError, TypeError, ValueError):
        return []
    return names if isinstance(names, list) else []


def read_parquet_row(path: Path, row: int) -> bytes:
    """The encoded audio of a row. Raises `OSError`, `DataError`, and what Parquet's reader does.

    Its row group is read whole, and kept until a row of another is asked for.
    """
    ends = group_ends(path)
    group = bisect.bisect_right(ends, row)
    audio = _read_group(path, group)[row - (ends[group - 1] if group else 0)].as_py() or {}
    if audio.get("bytes"):
        content: bytes = audio["bytes"]
        return content
    if not audio.get("path"):
        raise OSError(0, "the row has no audio")
    place = PurePath(str(audio["path"]))
    # what comes from a hub names no file of this machine
    if place.is_absolute() or ".." in place.parts:
        raise OSError(0, "its audio is named outside of the data set's folder")
    return read_regular(path.parent / place)


@lru_cache(maxsize=1)
def _read_group(path: Path, group: int) -> Any:
    return open_parquet(path).read_row_group(group, columns=[audio_column(path)]).column(0)
