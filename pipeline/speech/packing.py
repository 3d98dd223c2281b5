"""Recordings and transcripts into indexed WebDataset shards of 16 kHz mono FLAC."""

from __future__ import annotations

import io
import json
import os
import random
import re
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from pipeline.artefacts import digest_json, write_with
from pipeline.errors import DataError
from pipeline.speech.samples import SAMPLE_RATE_HZ, BadSampleError, decode
from pipeline.speech.shards import (
    INDEX_SUFFIX,
    ShardIndex,
    index_shard,
    normalise_language,
    read_index,
    write_index,
)

TRANSCRIPTS_NAME = "transcripts.tsv"
_NUM_NAMED = 5


@dataclass(frozen=True)
class Recording:
    """A file to pack."""

    key: str
    path: Path
    transcript: str
    language: str


@dataclass(frozen=True)
class PackReport:
    """What was packed, and what was left out and why (path → cause)."""

    shards: tuple[ShardIndex, ...]
    rejected: dict[str, str]


@dataclass(frozen=True)
class _Encoded:
    key: str
    flac: bytes
    seconds: float
    cause: str | None


def find_recordings(source: Path, *, language: str | None = None) -> list[Recording]:
    """Recordings of `source`/transcripts.tsv, or of each `source`/LANGUAGE/transcripts.tsv, in the order of the files.

    Raises `DataError` where there is no such file, a line isn't «file, tab, text», or a recording is missing.
    """
    if (source / TRANSCRIPTS_NAME).exists():
        if language is None and not re.fullmatch(r"[a-z]{2,3}", source.name):
            raise DataError(f"{source} doesn't say what language it is; give it with --language.")
        return _read_folder(source, normalise_language(language or source.name))
    folders = sorted(path.parent for path in source.glob(f"*/{TRANSCRIPTS_NAME}"))
    if not folders:
        raise DataError(
            f"{source} holds no {TRANSCRIPTS_NAME} (file, tab, text on each line), nor has it a folder a language that does."
        )
    return [recording for folder in folders for recording in _read_folder(folder, normalise_language(folder.name))]


def _read_folder(folder: Path, language: str) -> list[Recording]:
    recordings = []
    for number, line in enumerate((folder / TRANSCRIPTS_NAME).read_text(encoding="utf-8").splitlines(), start=1):
        if not line.strip():
            continue
        file, tab, text = line.partition("\t")
        if not tab or not text.strip():
            raise DataError(f"{folder / TRANSCRIPTS_NAME}, line {number}: wanted is file, tab, text; found {line[:80]!r}.")
        path = folder / file
        if not path.is_file():
            raise DataError(f"{folder / TRANSCRIPTS_NAME}, line {number} names {file}, which isn't in {folder}.")
        # WebDataset takes a key up to its first dot
        key = f"{language}/{Path(file).with_suffix('').as_posix()}".replace(".", "-")
        recordings.append(Recording(key, path, text.strip(), language))
    return recordings


def pack(
    recordings: Sequence[Recording],
    output: Path,
    *,
    shard_size: int,
    seed: int = 0,
    skip_bad: bool = False,
    num_processes: int | None = None,
    advance: Callable[[int], None] = lambda _done: None,
) -> PackReport:
    """Write `recordings` as `output`/LANGUAGE-NNNNNN.tar of `shard_size` samples, shuffled once under `seed`, with indices.

    Shards that an earlier, interrupted call finished are kept. Raises `DataError` naming recordings that can't be decoded,
    unless `skip_bad` leaves them out; complete shards stay either way.
    """
    output.mkdir(parents=True, exist_ok=True)
    rejected: dict[str, str] = {}
    shards = []
    with ProcessPoolExecutor(num_processes or os.cpu_count()) as pool:
        for language in sorted({recording.language for recording in recordings}):
            chosen = [recording for recording in recordings if recording.language == language]
            random.Random(seed).shuffle(chosen)
            for number, start in enumerate(range(0, len(chosen), shard_size)):
                part = chosen[start : start + shard_size]
                path = output / f"{language}-{number:06d}.tar"
                shard = _kept(path, part) or _pack_shard(path, part, pool, rejected, skip_bad=skip_bad)
                if shard is not None:
                    shards.append(shard)
                advance(len(part))
    return PackReport(tuple(shards), rejected)


def _source_digest(part: Sequence[Recording]) -> str:
    return digest_json([[r.key, r.transcript, r.path.stat().st_size, int(r.path.stat().st_mtime)] for r in part])


def _kept(path: Path, part: Sequence[Recording]) -> ShardIndex | None:
    """The shard of an earlier call, where it was made from the same recordings."""
    source = path.with_name(path.name + ".source")
    if not (path.exists() and source.exists() and path.with_name(path.name + INDEX_SUFFIX).exists()):
        return None
    return read_index(path) if source.read_text() == _source_digest(part) else None


def _pack_shard(
    path: Path, part: Sequence[Recording], pool: ProcessPoolExecutor, rejected: dict[str, str], *, skip_bad: bool
) -> ShardIndex | None:
    from webdataset import TarWriter

    encoded = list(pool.map(_encode, part, chunksize=8))
    bad = {str(r.path): str(e.cause) for r, e in zip(part, encoded, strict=True) if e.cause is not None}
    if bad and not skip_bad:
        listing = "\n".join(f"  - {name}: {cause}" for name, cause in list(bad.items())[:_NUM_NAMED])
        raise DataError(
            f"{len(bad)} recording(s) of {path.name} can't be used:\n{listing}\nRemove them from {TRANSCRIPTS_NAME}, or leave "
            "them out with --skip-bad."
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
    index = index_shard(path)
    write_index(index)
    # last: it says that shard and index are whole, and from what they were made
    digest = _source_digest(part)
    write_with(path.with_name(path.name + ".source"), lambda temporary: _fill(temporary, digest))
    return index


def _fill(path: Path, text: str) -> None:
    path.write_text(text)


def _encode(recording: Recording) -> _Encoded:
    """Decode, resample and write as FLAC, in a worker process."""
    import soundfile

    try:
        waveform = decode(recording.path.read_bytes())
    except (BadSampleError, OSError) as error:
        return _Encoded(recording.key, b"", 0.0, str(error))
    buffer = io.BytesIO()
    soundfile.write(buffer, waveform, SAMPLE_RATE_HZ, format="FLAC", subtype="PCM_16")
    return _Encoded(recording.key, buffer.getvalue(), len(waveform) / SAMPLE_RATE_HZ, None)
