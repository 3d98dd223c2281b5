"""Indexed tar shards: what lies where, so that any sample is one ranged read away.

Conventions accepted: audio `flac wav mp3 opus ogg`; text in `txt`, else in a json's `text`, `transcript`, `transcription`,
`sentence`, `normalized_text` or `raw_text`; language in a json's `language`, `language_id`, `lang` or `locale`.
"""

from __future__ import annotations

import glob
import io
import json
import os
import tarfile
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from pipeline.artefacts import digest_json, read_json, write_json
from pipeline.errors import DataError

INDEX_SUFFIX = ".index.json"
_SCHEMA_VERSION = 1
AUDIO_EXTENSIONS = ("flac", "wav", "mp3", "opus", "ogg")
_TEXT_KEYS = ("text", "transcript", "transcription", "sentence", "normalized_text", "raw_text")
_LANGUAGE_KEYS = ("language", "lang", "locale", "source_lang")
_LANGUAGE_NAMES = {"english": "en", "german": "de", "deutsch": "de", "french": "fr", "spanish": "es", "italian": "it"}


@dataclass(frozen=True)
class SampleEntry:
    """Where a sample's members lie in its shard, in bytes, and what the schedule must know of it."""

    key: str
    seconds: float
    language: str
    audio_offset: int
    audio_bytes: int
    text_offset: int
    text_bytes: int
    text_is_json: bool


@dataclass(frozen=True)
class ShardIndex:
    """One shard: its path, its size when it was indexed, and its samples in the order of the tar."""

    path: Path
    num_bytes: int
    samples: tuple[SampleEntry, ...]


def expand(pattern: str) -> list[Path]:
    """Shards of a path, a glob or a brace list, sorted. Raises `DataError` where there is none, or for what can't be read."""
    from braceexpand import braceexpand

    if "://" in pattern or pattern.startswith("pipe:"):
        raise DataError(f"{pattern}: shards are read from local paths and globs.")
    found: list[Path] = []
    for part in braceexpand(pattern):
        matches = sorted(glob.glob(os.path.expanduser(part)))
        if not matches:
            raise DataError(f"No shard matches {part!r} (working folder {Path.cwd()}). Make some with «kappaspeech pack».")
        found += [Path(match) for match in matches]
    wrong = [path for path in found if path.suffix != ".tar"]
    if wrong:
        raise DataError(f"{wrong[0]} isn't named .tar. A compressed tar can't be read at random: unpack it with gunzip first.")
    return found


def read_index(path: Path) -> ShardIndex:
    """The index beside a shard, checked against the shard. Raises `DataError` where it is missing or the shard has changed."""
    beside = path.with_name(path.name + INDEX_SUFFIX)
    if not beside.exists():
        raise DataError(f"{path} has no index beside it. Make it with «kappaspeech index {path}».")
    content = read_json(beside, schema_version=_SCHEMA_VERSION)
    num_bytes = path.stat().st_size
    if num_bytes != content["num_bytes"]:
        raise DataError(
            f"{path} has {num_bytes} bytes but had {content['num_bytes']} when it was indexed: it is cut or was replaced. "
            f"Restore it, or index it again with «kappaspeech index {path}»."
        )
    names = [field.name for field in fields(SampleEntry)]
    samples = tuple(SampleEntry(**dict(zip(names, row, strict=True))) for row in content["samples"])
    return ShardIndex(path, num_bytes, samples)


def write_index(index: ShardIndex) -> Path:
    """Write an index beside its shard."""
    beside = index.path.with_name(index.path.name + INDEX_SUFFIX)
    rows = [list(asdict(sample).values()) for sample in index.samples]
    write_json(beside, {"schema_version": _SCHEMA_VERSION, "num_bytes": index.num_bytes, "samples": rows})
    return beside


def index_shard(path: Path, *, default_language: str | None = None) -> ShardIndex:
    """Index a shard by its tar headers; durations come from the json, else from the audio's header.

    Raises `DataError` for what is no tar, is cut, repeats a key, or lacks a sample's audio, text or language.
    """
    try:
        with tarfile.open(path, "r:") as archive:
            members = [(m.name, m.offset_data, m.size) for m in archive if m.isfile()]
    except FileNotFoundError:
        raise DataError(f"There is no shard at {path}.") from None
    except (tarfile.TarError, OSError) as error:
        raise DataError(f"{path} is no tar file, or is cut: {error}") from error
    num_bytes = path.stat().st_size
    groups: dict[str, dict[str, tuple[int, int]]] = {}
    for name, offset, size in members:
        key, extension = _split_name(name)
        if offset + size > num_bytes:
            raise DataError(f"{path} is cut: {name} ends at byte {offset + size}, the file at {num_bytes}.")
        if extension in groups.setdefault(key, {}):
            raise DataError(f"{path} holds {name} twice, so its samples can't be told apart.")
        groups[key][extension] = (offset, size)
    with path.open("rb") as file:
        samples = tuple(_describe(path, file.fileno(), key, parts, default_language) for key, parts in groups.items())
    if not samples:
        raise DataError(f"{path} holds no sample.")
    return ShardIndex(path, num_bytes, samples)


def _split_name(name: str) -> tuple[str, str]:
    """A member's key and extension, split at the last dot: `spk.1.utt.wav` is the sample `spk.1.utt`."""
    key, _, extension = name.rpartition(".")
    return key.removeprefix("./"), extension.lower()


def _describe(
    path: Path, descriptor: int, key: str, parts: dict[str, tuple[int, int]], default_language: str | None
) -> SampleEntry:
    audio = next((parts[extension] for extension in AUDIO_EXTENSIONS if extension in parts), None)
    if audio is None:
        raise DataError(f"{path}: the sample {key} has no audio ({', '.join(AUDIO_EXTENSIONS)}); it has {', '.join(parts)}.")
    details: dict[str, Any] = {}
    if "json" in parts:
        details = _parse_json(path, key, os.pread(descriptor, parts["json"][1], parts["json"][0]))
    text = parts.get("txt", parts.get("json"))
    if text is None or ("txt" not in parts and not any(name in details for name in _TEXT_KEYS)):
        raise DataError(f"{path}: the sample {key} has no transcript (a .txt, or one of {', '.join(_TEXT_KEYS)} in its .json).")
    language = next((str(details[name]) for name in _LANGUAGE_KEYS if details.get(name)), default_language)
    if language is None:
        raise DataError(f"{path}: the sample {key} names no language; give one with --language.")
    seconds = details.get("duration")
    if not isinstance(seconds, (int, float)):
        seconds = _duration(path, key, os.pread(descriptor, audio[1], audio[0]))
    return SampleEntry(key, float(seconds), normalise_language(language), *audio, *text, text_is_json="txt" not in parts)


def _parse_json(path: Path, key: str, content: bytes) -> dict[str, Any]:
    try:
        details = json.loads(content)
    except ValueError as error:
        raise DataError(f"{path}: the json of {key} can't be parsed: {error}") from error
    if not isinstance(details, dict):
        raise DataError(f"{path}: the json of {key} holds no object.")
    return details


def _duration(path: Path, key: str, content: bytes) -> float:
    import soundfile

    try:
        return float(soundfile.info(io.BytesIO(content)).duration)
    except soundfile.SoundFileError as error:
        raise DataError(f"{path}: the audio of {key} can't be decoded: {error}") from error


def normalise_language(name: str) -> str:
    """`DE`, `de_DE`, `german` → `de`."""
    short = name.strip().lower()
    return _LANGUAGE_NAMES.get(short, short.replace("_", "-").split("-")[0])


def parse_transcript(content: bytes, *, is_json: bool) -> str:
    """The transcript in a txt or json member. `ValueError` where there is none."""
    if not is_json:
        return content.decode().strip()
    details = json.loads(content)
    return str(next(details[name] for name in _TEXT_KEYS if name in details)).strip()


def fingerprint(shards: Iterable[ShardIndex]) -> str:
    """Digest of which samples there are, where, and how long: not of the folder that they lie in."""
    return digest_json([[shard.path.name, [list(asdict(s).values()) for s in shard.samples]] for shard in shards])


def count_hours(shards: Sequence[ShardIndex]) -> dict[str, float]:
    """Hours of audio by language."""
    hours: dict[str, float] = {}
    for shard in shards:
        for sample in shard.samples:
            hours[sample.language] = hours.get(sample.language, 0.0) + sample.seconds / 3600
    return hours
