"""Recordings and transcripts into indexed WebDataset shards of 16 kHz mono FLAC."""

from __future__ import annotations

import itertools
import json
import os
import random
import re
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kappaspeech.artefacts import write_json, write_with
from kappaspeech.errors import DataError
from kappaspeech.parenthood import end_with_parent
from kappaspeech.processors import count_cores
from kappaspeech.speech.languages import normalise_language
from kappaspeech.speech.listed_audio import cut_segment, decode_whole
from kappaspeech.speech.recordings import Recording, TarMember
from kappaspeech.speech.samples import SAMPLE_RATE_HZ, BadSampleError, check_whole, decode, encode
from kappaspeech.speech.shard_claims import (
    corpus_of,
    find_stale,
    is_finished,
    read_claim,
    read_finished,
    refuse_others,
    remove_shard,
    source_digest,
    write_claim,
)
from kappaspeech.speech.shard_indexing import index_shard
from kappaspeech.speech.shards import ShardIndex, read_index, write_index
from kappaspeech.speech.tar_members import escape_name

REPORT_NAME = "report.json"
_FILES_PER_TASK = 8
# of one file, so that several processes share out a long one
_PARTS_PER_TASK = 32
_NUM_NAMED = 5
_QUANTILES = (0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 1.0)
_PREFIX = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")


@dataclass(frozen=True)
class PackReport:
    """Packed samples, those left out (path → cause), and removed shards, which an earlier call had cut otherwise."""

    shards: tuple[ShardIndex, ...]
    rejected: dict[str, str]
    removed: tuple[Path, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Return the content of report.json: hours and quantiles of the length by language, and what was left out."""
        lengths: dict[str, list[float]] = {}
        for shard in self.shards:
            for sample in shard.samples:
                lengths.setdefault(sample.language, []).append(sample.seconds)
        languages = {
            language: {
                "samples": len(seconds),
                "hours": sum(seconds) / 3600,
                "seconds_quantiles": {str(q): float(np.quantile(seconds, q)) for q in _QUANTILES},
            }
            for language, seconds in sorted(lengths.items())
        }
        shards = [Path(shard.where).name for shard in self.shards]
        return {"schema_version": 1, "languages": languages, "shards": shards, "rejected": self.rejected}


@dataclass(frozen=True)
class _Encoded:
    key: str
    flac: bytes
    seconds: float
    cause: str | None


def pack(
    recordings: Sequence[Recording],
    output: Path,
    *,
    shard_size: int,
    seed: int = 0,
    skip_bad: bool = False,
    max_seconds: float | None = None,
    num_processes: int | None = None,
    prefix: str | None = None,
    advance: Callable[[int], None] = lambda _done: None,
) -> PackReport:
    """Write `recordings` as `output`/LANGUAGE-NNNNNN.tar of `shard_size` samples, shuffled once under `seed`, with indices.

    With a `prefix`, which also begins keys, shards of several corpora lie in one folder. Shards that an earlier, interrupted
    call finished are kept, and those of the same corpus that no longer belong to it are removed. Raises `DataError` before
    anything is written if another corpus's shards would be replaced; and, naming recordings that can't be decoded, unless
    `skip_bad` leaves them out; complete shards stay either way. One longer than `max_seconds` counts as such. What was packed
    into `output` and left out, by this call and others, is also written to `output`/report.json.
    """
    if prefix is not None:
        recordings = [replace(recording, key=f"{prefix}/{recording.key}") for recording in recordings]
    planned = _plan(recordings, output, shard_size=shard_size, seed=seed, prefix=prefix)
    corpus = corpus_of(recordings)
    finished = {path for path, part in planned if is_finished(path, part, max_seconds)}
    refuse_others([path for path, _ in planned], recordings, finished)
    output.mkdir(parents=True, exist_ok=True)
    rejected: dict[str, str] = {}
    shards = []
    with ProcessPoolExecutor(num_processes or count_cores(), initializer=end_with_parent, initargs=(os.getpid(),)) as pool:
        for path, part in planned:
            if path in finished:
                shards.append(read_index(str(path)))
                rejected.update(read_claim(path)["rejected"])
            else:
                shard = _pack_shard(path, part, pool, rejected, max_seconds, skip_bad)
                shards += [shard] if shard is not None else []
            advance(len(part))
    stale = find_stale([path for path, _ in planned], corpus)
    for path in stale:
        remove_shard(path)
    present = read_finished(output)
    left_out = {name: cause for _, causes in present for name, cause in causes.items()}
    whole = PackReport(tuple(shard for shard, _ in present), {**left_out, **rejected})
    write_json(output / REPORT_NAME, whole.to_json())
    return PackReport(tuple(shards), rejected, tuple(stale))


def _plan(
    recordings: Sequence[Recording], output: Path, *, shard_size: int, seed: int, prefix: str | None
) -> list[tuple[Path, list[Recording]]]:
    """Each shard's path and what goes into it."""
    if prefix is not None and not _PREFIX.fullmatch(prefix):
        raise DataError(f"{prefix!r} can't begin file names. Wanted for a prefix are letters, digits, _ and -.")
    planned = []
    for language in sorted({recording.language for recording in recordings}):
        name = "-".join(filter(None, (prefix, normalise_language(language))))
        chosen = [recording for recording in recordings if recording.language == language]
        # what is read together stays together
        blocks = [list(block) for _, block in itertools.groupby(chosen, key=_block_of)]
        random.Random(seed).shuffle(blocks)
        chosen = list(itertools.chain.from_iterable(blocks))
        for number, start in enumerate(range(0, len(chosen), shard_size)):
            planned.append((output / f"{name}-{number:06d}.tar", chosen[start : start + shard_size]))
    return planned


def _block_of(recording: Recording) -> tuple[Path, int] | str:
    return recording.key if recording.block is None else (recording.path, recording.block)


def _pack_shard(
    path: Path,
    part: Sequence[Recording],
    pool: ProcessPoolExecutor,
    rejected: dict[str, str],
    max_seconds: float | None,
    skip_bad: bool,
) -> ShardIndex | None:
    from webdataset import TarWriter

    try:
        done = itertools.chain.from_iterable(pool.map(partial(_encode_all, max_seconds=max_seconds), _tasks(part)))
        by_key = {item.key: item for item in done}
        encoded = [by_key[recording.key] for recording in part]
    except BrokenProcessPool as error:
        raise DataError(
            f"A process that encodes {path.name} died, most likely for lack of memory. Give fewer --workers, or --max-seconds."
        ) from error
    bad = {escape_name(r.name): escape_name(e.cause) for r, e in zip(part, encoded, strict=True) if e.cause is not None}
    if bad and not skip_bad:
        listing = "\n".join(f"  - {name}: {cause}" for name, cause in list(bad.items())[:_NUM_NAMED])
        raise DataError(
            f"{len(bad)} recording(s) of {path.name} can't be used:\n{listing}\nRemove them from the "
            "corpus's list, or leave them out with --skip-bad."
        )
    rejected.update(bad)
    good = [(r, e) for r, e in zip(part, encoded, strict=True) if e.cause is None]
    if not good:
        # what an earlier call made of them would be trained on; but files that are away may come back
        if any(recording.path.exists() for recording in part):
            remove_shard(path)
        return None

    def write(temporary: Path) -> None:
        with TarWriter(str(temporary), mtime=0.0) as writer:
            for recording, item in good:
                details = {"text": recording.transcript, "language": recording.language, "duration": item.seconds}
                content = json.dumps(details, ensure_ascii=False).encode()
                writer.write({"__key__": recording.key, "flac": item.flac, "json": content})

    corpus = corpus_of(part)
    write_claim(path, corpus)
    write_with(path, write)
    index = index_shard(str(path))
    write_index(index)
    # last: it says that shard and index are whole, and from what they were made
    write_claim(path, corpus, digest=source_digest(part, max_seconds), rejected=bad)
    return index


def _tasks(part: Sequence[Recording]) -> list[list[Recording]]:
    """Recordings that a process encodes at once, not in their order: a block, which is read whole, parts of a file, which is
    decoded whole, or a few files."""
    together: dict[Any, list[Recording]] = {}
    for recording in part:
        place = _block_of(recording) if recording.is_whole else (recording.path, recording.member, recording.row)
        together.setdefault(place, []).append(recording)
    tasks: list[list[Recording]] = []
    alone: list[Recording] = []
    for recordings in together.values():
        if recordings[0].block is None and len(recordings) == 1:
            alone += recordings
        else:
            tasks += [recordings] if recordings[0].is_whole else _divide(recordings, _PARTS_PER_TASK)
    return _divide(alone, _FILES_PER_TASK) + tasks


def _divide(recordings: list[Recording], size: int) -> list[list[Recording]]:
    return [recordings[start : start + size] for start in range(0, len(recordings), size)]


def _encode_all(recordings: Sequence[Recording], *, max_seconds: float | None) -> list[_Encoded]:
    return [_encode(recording, max_seconds=max_seconds) for recording in recordings]


def _encode(recording: Recording, *, max_seconds: float | None) -> _Encoded:
    """Decode, resample and write as FLAC, in a worker process."""
    try:
        waveform = _cut(recording, max_seconds)
    except Exception as error:  # noqa: BLE001 - whatever a decoder raises is told with the recording's name
        cause = str(error) if isinstance(error, (BadSampleError, OSError)) else f"{type(error).__name__}: {error}"
        return _Encoded(recording.key, b"", 0.0, cause)
    return _Encoded(recording.key, encode(waveform), len(waveform) / SAMPLE_RATE_HZ, None)


def _cut(recording: Recording, max_seconds: float | None) -> NDArray[np.float32]:
    """The samples that are packed of a recording. Raises `BadSampleError`, `OSError`, and whatever a decoder does."""
    if recording.fault is not None:
        raise BadSampleError(*recording.fault)
    if not recording.transcript:
        raise BadSampleError("empty text", recording.key)
    if recording.is_whole:
        content = recording.read()
        check_whole(content)
        return decode_whole(content, recording.listed_seconds, max_seconds)
    waveform = cut_segment(_decode_file(recording.path, recording.member, recording.row), recording)
    if max_seconds is not None and len(waveform) > max_seconds * SAMPLE_RATE_HZ:
        raise BadSampleError("too long", f"{len(waveform) / SAMPLE_RATE_HZ:.1f} s")
    return waveform


@lru_cache(maxsize=1)
def _decode_file(path: Path, member: TarMember | None, row: int | None) -> NDArray[np.float32]:
    """The waveform (T,) of a file whose parts are packed. The last one is kept: to decode an hour takes longer than to encode its
    parts. Raises as `_cut` does."""
    content = Recording("", path, "", "", member=member, row=row).read()
    check_whole(content)
    return decode(content)
