"""Recordings and transcripts into indexed WebDataset shards of 16 kHz mono FLAC."""

from __future__ import annotations

import io
import json
import os
import random
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.artefacts import digest_json, write_json, write_with
from pipeline.errors import DataError
from pipeline.parenthood import end_with_parent
from pipeline.processors import count_cores
from pipeline.speech.layouts import Recording
from pipeline.speech.samples import SAMPLE_RATE_HZ, BadSampleError, decode
from pipeline.speech.shards import (
    INDEX_SUFFIX,
    ShardIndex,
    index_shard,
    read_index,
    write_index,
)

REPORT_NAME = "report.json"
SOURCE_SUFFIX = ".source.json"
_NUM_NAMED = 5
_QUANTILES = (0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 1.0)
# A manifest's duration may be rounded.
_SLACK_SECONDS = 0.1


@dataclass(frozen=True)
class PackReport:
    """What was packed, and what was left out and why (path → cause)."""

    shards: tuple[ShardIndex, ...]
    rejected: dict[str, str]

    def to_json(self) -> dict[str, Any]:
        """As report.json holds it: hours and quantiles of the length by language, and what was left out."""
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
    advance: Callable[[int], None] = lambda _done: None,
) -> PackReport:
    """Write `recordings` as `output`/LANGUAGE-NNNNNN.tar of `shard_size` samples, shuffled once under `seed`, with indices.

    Shards that an earlier, interrupted call finished are kept. Raises `DataError` naming recordings that can't be decoded,
    unless `skip_bad` leaves them out; complete shards stay either way. One longer than `max_seconds` counts as such. What
    was packed and left out is also written to `output`/report.json.
    """
    output.mkdir(parents=True, exist_ok=True)
    rejected: dict[str, str] = {}
    shards = []
    with ProcessPoolExecutor(num_processes or count_cores(), initializer=end_with_parent, initargs=(os.getpid(),)) as pool:
        for language in sorted({recording.language for recording in recordings}):
            chosen = [recording for recording in recordings if recording.language == language]
            random.Random(seed).shuffle(chosen)
            for number, start in enumerate(range(0, len(chosen), shard_size)):
                part = chosen[start : start + shard_size]
                path = output / f"{language}-{number:06d}.tar"
                shard = _kept(path, part, max_seconds, rejected) or _pack_shard(path, part, pool, rejected, max_seconds, skip_bad)
                if shard is not None:
                    shards.append(shard)
                advance(len(part))
    report = PackReport(tuple(shards), rejected)
    write_json(output / REPORT_NAME, report.to_json())
    return report


def _source_digest(part: Sequence[Recording], max_seconds: float | None) -> str:
    files = [(r.path.stat() if r.path.exists() else None) for r in part]
    sources = [
        [r.key, r.transcript, r.begin_seconds, r.seconds, r.row, *((f.st_size, int(f.st_mtime)) if f else ())]
        for r, f in zip(part, files, strict=True)
    ]
    return digest_json([sources, max_seconds])


def _kept(path: Path, part: Sequence[Recording], max_seconds: float | None, rejected: dict[str, str]) -> ShardIndex | None:
    """The shard of an earlier call, where it was made from the same recordings; what that left out is left out again."""
    source = path.with_name(path.name + SOURCE_SUFFIX)
    if not (path.exists() and source.exists() and path.with_name(path.name + INDEX_SUFFIX).exists()):
        return None
    try:
        content = json.loads(source.read_text(encoding="utf-8"))
        if content["digest"] != _source_digest(part, max_seconds):
            return None
        rejected.update(content["rejected"])
    except (ValueError, KeyError, TypeError):
        return None
    return read_index(str(path))


def _pack_shard(
    path: Path,
    part: Sequence[Recording],
    pool: ProcessPoolExecutor,
    rejected: dict[str, str],
    max_seconds: float | None,
    skip_bad: bool,
) -> ShardIndex | None:
    from webdataset import TarWriter

    encoded = list(pool.map(partial(_encode, max_seconds=max_seconds), part, chunksize=8))
    bad = {r.name: str(e.cause) for r, e in zip(part, encoded, strict=True) if e.cause is not None}
    if bad and not skip_bad:
        listing = "\n".join(f"  - {name}: {cause}" for name, cause in list(bad.items())[:_NUM_NAMED])
        raise DataError(
            f"{len(bad)} recording(s) of {path.name} can't be used:\n{listing}\nRemove them from the "
            "corpus's list, or leave them out with --skip-bad."
        )
    rejected.update(bad)
    good = [(r, e) for r, e in zip(part, encoded, strict=True) if e.cause is None]
    if not good:
        return None

    def write(temporary: Path) -> None:
        with TarWriter(str(temporary), mtime=0.0) as writer:
            for recording, item in good:
                details = {"text": recording.transcript, "language": recording.language, "duration": item.seconds}
                content = json.dumps(details, ensure_ascii=False).encode()
                writer.write({"__key__": recording.key, "flac": item.flac, "json": content})

    write_with(path, write)
    index = index_shard(str(path))
    write_index(index)
    # last: it says that shard and index are whole, and from what they were made
    write_json(path.with_name(path.name + SOURCE_SUFFIX), {"digest": _source_digest(part, max_seconds), "rejected": bad})
    return index


def _encode(recording: Recording, *, max_seconds: float | None) -> _Encoded:
    """Decode, resample and write as FLAC, in a worker process."""
    import soundfile

    try:
        if not recording.transcript:
            raise BadSampleError("empty text", recording.key)
        waveform = decode(recording.read())
        begin = int(recording.begin_seconds * SAMPLE_RATE_HZ)
        end = len(waveform) if recording.seconds is None else begin + round(recording.seconds * SAMPLE_RATE_HZ)
        if begin >= len(waveform) or end - len(waveform) > _SLACK_SECONDS * SAMPLE_RATE_HZ:
            raise BadSampleError(
                "truncated", f"{len(waveform) / SAMPLE_RATE_HZ:.2f} s, and {end / SAMPLE_RATE_HZ:.2f} s are wanted"
            )
        waveform = waveform[begin:end]
        if max_seconds is not None and len(waveform) > max_seconds * SAMPLE_RATE_HZ:
            raise BadSampleError("too long", f"{len(waveform) / SAMPLE_RATE_HZ:.1f} s")
    except (BadSampleError, OSError) as error:
        return _Encoded(recording.key, b"", 0.0, str(error))
    buffer = io.BytesIO()
    soundfile.write(buffer, waveform, SAMPLE_RATE_HZ, format="FLAC", subtype="PCM_16")
    return _Encoded(recording.key, buffer.getvalue(), len(waveform) / SAMPLE_RATE_HZ, None)
