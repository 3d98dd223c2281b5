"""The index of a shard, made by reading the headers of its tar."""

from __future__ import annotations

import io
from typing import Any

from kappaspeech.errors import DataError
from kappaspeech.speech.languages import normalise_language
from kappaspeech.speech.recordings import AUDIO_EXTENSIONS, LONGEST_SECONDS
from kappaspeech.speech.regular_files import is_litter
from kappaspeech.speech.samples import explain_undecodable
from kappaspeech.speech.shards import SampleEntry, ShardIndex, ShardStamp, digest_heads, known_seconds, split_name
from kappaspeech.speech.source import ReadOptions
from kappaspeech.speech.sources import RangeFile, open_source
from kappaspeech.speech.tar_members import HEADER_BYTES, read_members
from kappaspeech.speech.text_files import LANGUAGE_KEYS, TEXT_KEYS, parse_object

_BUFFER_BYTES = 1 << 20


def index_shard(where: str, *, default_language: str | None = None, options: ReadOptions | None = None) -> ShardIndex:
    """Index a shard by its tar headers; durations come from the json, else from the audio's header.

    Raises `DataError` for what is no tar, is cut, repeats a key, or lacks a sample's audio, text or language.
    """
    source = open_source(where, options or ReadOptions())
    num_bytes = source.num_bytes()
    with io.BufferedReader(RangeFile(source), _BUFFER_BYTES) as file:
        groups = group_members(where, file, num_bytes)
        samples = tuple(_describe(where, file, key, parts, default_language) for key, parts in groups.items())
    if not samples:
        raise DataError(f"{where} holds no sample.")
    return ShardIndex(where, ShardStamp(num_bytes, source.stamp(), digest_heads(source, samples)), samples)


def group_members(where: str, file: Any, num_bytes: int) -> dict[str, dict[str, tuple[int, int]]]:
    """(offset, size) of each member by sample and extension. Raises `DataError` for what is no tar, or is cut."""
    groups: dict[str, dict[str, tuple[int, int]]] = {}
    try:
        for name, offset, size in read_members(file, num_bytes):
            if _is_litter(name):
                continue
            key, extension = split_name(name)
            if offset + size > num_bytes:
                raise DataError(f"{where} is cut: {name} ends at byte {offset + size}, the file at {num_bytes}.")
            if extension in groups.setdefault(key, {}):
                raise DataError(f"{where} holds {name} twice, so its samples can't be told apart.")
            groups[key][extension] = (offset, size)
        # tar ends with two blocks of zeros; without them it may have been cut between two members, which nothing else shows
        file.seek(max(0, num_bytes - 2 * HEADER_BYTES))
        if any(file.read(2 * HEADER_BYTES)):
            raise DataError(f"{where} is cut: it doesn't end as a tar file does. Restore it, or make it again.")
    except (ValueError, OSError, EOFError) as error:
        raise DataError(f"{where} is no tar file, or is cut: {error}") from error
    return groups


def _is_litter(name: str) -> bool:
    """Return whether a member is litter of macOS, or a folder's settings."""
    last = name.rsplit("/", 1)[-1]
    return is_litter(last) or last == ".DS_Store" or name.startswith("__MACOSX/")


def _describe(where: str, file: Any, key: str, parts: dict[str, tuple[int, int]], default_language: str | None) -> SampleEntry:
    audio = next((parts[extension] for extension in AUDIO_EXTENSIONS if extension in parts), None)
    if audio is None:
        raise DataError(f"{where}: the sample {key} has no audio ({', '.join(AUDIO_EXTENSIONS)}); it has {', '.join(parts)}.")
    details = _parse_json(where, key, _read(file, parts["json"])) if "json" in parts else {}
    text = parts.get("txt", parts.get("json"))
    if text is None or ("txt" not in parts and not any(name in details for name in TEXT_KEYS)):
        raise DataError(f"{where}: the sample {key} has no transcript (a .txt, or one of {', '.join(TEXT_KEYS)} in its .json).")
    language = next((details[name] for name in LANGUAGE_KEYS if details.get(name)), default_language)
    if language is None:
        raise DataError(f"{where}: the sample {key} names no language; give one with --language.")
    seconds = _declared_seconds(details) or read_duration(where, key, _read(file, audio))
    language = normalise_language(language, where=f"{where}: the sample {key}")
    return SampleEntry(key, seconds, language, *audio, *text, text_is_json="txt" not in parts)


def _declared_seconds(details: dict[str, Any]) -> float:
    """The json's duration; 0 if it has none, or one that can't be one."""
    seconds = details.get("duration")
    if isinstance(seconds, bool) or not isinstance(seconds, (int, float)):
        return 0.0
    # an integer may be too large for a float
    return known_seconds(float(seconds)) if abs(seconds) <= LONGEST_SECONDS else 0.0


def _read(file: Any, part: tuple[int, int]) -> bytes:
    file.seek(part[0])
    content: bytes = file.read(part[1])
    return content


def _parse_json(where: str, key: str, content: bytes) -> dict[str, Any]:
    try:
        return parse_object(content)
    except ValueError as error:
        raise DataError(f"{where}: the json of {key} can't be parsed: {error}") from error


def read_duration(where: str, key: str, content: bytes) -> float:
    """A clip's length by its audio's header, 0 if that says none. Raises `DataError` for what is no audio."""
    import soundfile

    try:
        return known_seconds(float(soundfile.info(io.BytesIO(content)).duration))
    except soundfile.SoundFileError as error:
        raise DataError(f"{where}: the audio of {key} can't be decoded: {explain_undecodable(error)}") from error
