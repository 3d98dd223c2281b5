"""Manifests of JSON lines, as NVIDIA NeMo reads them and others write them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from kappaspeech.errors import DataError
from kappaspeech.speech.languages import UnnamedLanguageError, normalise_language
from kappaspeech.speech.recordings import LONGEST_SECONDS, Recording, Request, make_key
from kappaspeech.speech.text_files import LANGUAGE_KEYS, check_unicode, find_text, parse_object, read_lines

_AUDIO_KEYS = ("audio_filepath", "audio", "path", "wav")
_SHOWN_LETTERS = 80

Place = Callable[[Recording, str, dict[str, Any]], Recording | None]


def is_manifest(source: Path) -> bool:
    return source.is_file() and source.suffix in (".json", ".jsonl", ".manifest")


def read_manifest(source: Path, request: Request) -> Iterator[Recording]:
    """Read lines {audio_filepath, text, duration, offset, lang}; paths count from the manifest (NVIDIA NeMo).

    With an offset, null or 0 included, `duration` is how much is packed; without one it is how long the file must be.
    """
    if request.split is not None:
        raise DataError(f"{source} is a manifest, which has no splits: make one of {request.split!r} and leave out --split.")
    yield from read_entries(source, request, lambda recording, _audio, _entry: recording)


def read_entries(source: Path, request: Request, place: Place, *, tag: str = "") -> Iterator[Recording]:
    """Read a manifest's lines. `place` takes a recording, the name of its audio and its entry, says where it lies if not at that
    path, and gives None for one to leave out. A `tag` begins the keys' names."""
    for number, where, entry in _parse(source, request.text_keys, named=request.text_column or "text"):
        named = next((entry[name] for name in LANGUAGE_KEYS if entry.get(name)), request.default_language)
        if request.language is None and named is None:
            raise UnnamedLanguageError(f"{where} names no language; give one with --language.")
        language = request.language or normalise_language(named, where=where)
        audio = _audio_of(entry)
        recording = _locate(source, number, where, entry, language, tag=tag)
        placed = place(recording, audio, entry)
        if placed is None or placed.fault is not None:
            yield from () if placed is None else (placed,)
            continue
        recording = placed
        try:
            text = find_text(entry, request.text_keys)
        except ValueError as error:
            yield request.judge(recording, ("text", str(error)), f"{where}: the text can't be used: {error}.")
        else:
            yield replace(recording, transcript=text.strip())


def read_untranscribed(source: Path) -> Iterator[Recording]:
    """The recordings of a manifest whose lines need neither text nor language, which is then "". Raises `DataError`."""
    for number, where, entry in _parse(source):
        named = next((entry[name] for name in LANGUAGE_KEYS if entry.get(name)), None)
        language = "" if named is None else normalise_language(named, where=where)
        yield _locate(source, number, where, entry, language)


def _parse(source: Path, text_keys: Sequence[str] = (), *, named: str = "") -> Iterator[tuple[int, str, dict[str, Any]]]:
    """Number, place in words, and content of each line. It has a path, and if there are any one of `text_keys`, `named` so."""
    for number, line in enumerate(read_lines(source), start=1):
        if not line.strip():
            continue
        where = f"{source}, line {number}"
        try:
            entry = parse_object(line)
            audio = _audio_of(entry)
            if not isinstance(audio, str) or (text_keys and not any(name in entry for name in text_keys)):
                raise ValueError("no path or no text")
            check_unicode(audio)
        except (ValueError, StopIteration) as error:
            found, wanted = repr(line[:_SHOWN_LETTERS]), f"audio_filepath{f' and {named}' if text_keys else ''}"
            raise DataError(f"{where}: wanted is {wanted}; found {found}.{_tell_array(line)}") from error
        yield number, where, entry


def _audio_of(entry: dict[str, Any]) -> Any:
    return next(entry[name] for name in _AUDIO_KEYS if entry.get(name))


def _locate(source: Path, number: int, where: str, entry: dict[str, Any], language: str, *, tag: str = "") -> Recording:
    audio = _audio_of(entry)
    begin, seconds = _number(entry, "offset", where), _number(entry, "duration", where)
    is_segment = "offset" in entry
    return Recording(
        make_key(language, f"{tag}{number:08d}-{Path(audio).stem}"),
        source.parent / audio,
        "",
        language,
        begin,
        (seconds or None) if is_segment else None,
        listed_seconds=None if is_segment else seconds or None,
    )


def _tell_array(line: str) -> str:
    return " One JSON object a line is read, not one array of all." if line.lstrip().startswith("[") else ""


def _number(entry: dict[str, Any], name: str, where: str) -> float:
    """Seconds that an entry gives, 0 for none. Raises `DataError` for what can't be a time."""
    value = entry.get(name)
    if value is None or value == "":
        return 0.0
    try:
        seconds = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        seconds = math.nan
    if not 0 <= seconds <= LONGEST_SECONDS:
        raise DataError(f"{where}: {name} is {str(value)[:_SHOWN_LETTERS]}, and wanted are seconds.")
    return seconds
