"""The audio of shards, transcribed or not: by an index if there is one, else by the tar's headers."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path

from kappaspeech.errors import DataError
from kappaspeech.speech.recordings import AUDIO_EXTENSIONS
from kappaspeech.speech.shard_indexing import group_members
from kappaspeech.speech.shards import SampleEntry, expand, read_index
from kappaspeech.speech.source import ReadOptions, is_remote
from kappaspeech.speech.sources import RangeFile, open_source
from kappaspeech.speech.table import MERGED_SUFFIX, read_merged

_BUFFER_BYTES = 1 << 20


@dataclass(frozen=True)
class ShardMember:
    """A clip in a shard: where its encoded audio lies, and what an index says of it: its length, 0 if unknown, and language."""

    where: str
    key: str
    kind: str
    offset: int
    num_bytes: int
    seconds: float = 0.0
    language: str = ""


def find_shards(pattern: str) -> list[str]:
    """The shards of a path, URL, glob or brace list; a merged index stands for itself. Raises `DataError`."""
    return [pattern] if _is_merged(pattern) else expand(pattern)


def list_members(where: str, options: ReadOptions | None = None) -> list[ShardMember]:
    """The clips of one of `find_shards`, in their order. Raises `DataError` if it can't be read, or holds no audio."""
    if _is_merged(where):
        table = read_merged(Path(where).expanduser())
        shards = [table.shards[table.shard_of(row)][0] for row in range(len(table))]
        return [_indexed(shard, table.entry(row)) for row, shard in enumerate(shards)]
    try:
        return [_indexed(where, entry) for entry in read_index(where, options).samples]
    except DataError:
        return _walk(where, options or ReadOptions())


def _is_merged(where: str) -> bool:
    return where.endswith(MERGED_SUFFIX) and not is_remote(where)


def _indexed(where: str, entry: SampleEntry) -> ShardMember:
    if entry.listing is not None and not entry.listing.is_whole:
        raise DataError(f"{where}: {entry.key} is a part of a recording. Make shards of its data set with `kappaspeech pack`.")
    return ShardMember(where, entry.key, "", entry.audio_offset, entry.audio_bytes, entry.seconds, entry.language)


def _walk(where: str, options: ReadOptions) -> list[ShardMember]:
    source = open_source(where, options)
    num_bytes = source.num_bytes()
    with io.BufferedReader(RangeFile(source), _BUFFER_BYTES) as file:
        groups = group_members(where, file, num_bytes)
    found = []
    for key, parts in groups.items():
        kind = next((extension for extension in AUDIO_EXTENSIONS if extension in parts), None)
        if kind is not None:
            found.append(ShardMember(where, key, kind, *parts[kind]))
    if not found:
        raise DataError(f"{where} holds no audio ({', '.join(AUDIO_EXTENSIONS)}).")
    return found
