"""Lhotse Shar: `cuts.000000.jsonl.gz` says what is said in the recordings of `recording.000000.tar`."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from kappaspeech.errors import DataError
from kappaspeech.outside import check_regular
from kappaspeech.speech.languages import UnnamedLanguageError, normalise_language
from kappaspeech.speech.recordings import LONGEST_SECONDS, Recording, Request, TarMember, make_key
from kappaspeech.speech.splits import choose_splits
from kappaspeech.speech.tar_members import escape_name, list_members
from kappaspeech.speech.text_files import check_unicode, parse_object

_LONGEST_LINE_BYTES = 16 << 20
# beside each recording in a tar, what lhotse knows of it
_MANIFEST_ENDINGS = ("json", "nometa")
# in place of a recording that a cut doesn't have
_NO_AUDIO = "nodata"
# Less than a word: times are rounded, and segments end in silence.
_SLACK_SECONDS = 0.2


def is_shar(source: Path) -> bool:
    return bool(_find_cuts(source)) or bool(_find_splits(source))


def read_shar(source: Path, request: Request) -> Iterator[Recording]:
    """Read a folder of Lhotse Shar, or one that has such a folder for each split. A cut is one recording; the texts of its
    supervisions, in their order, are its transcript, and their language is its own. A cut whose texts don't say what is said in
    it can't be used: one of them is missing, or goes with audio that was cut off."""
    splits = _find_splits(source)
    if _find_cuts(source):
        splits = {source.resolve().name: source}
    chosen = choose_splits(source, list(splits), request.split)
    for split in chosen:
        for cuts in _find_cuts(splits[split]):
            yield from _read_shard(cuts, request, prefix=f"{split}-" if len(chosen) > 1 else "")


def list_shar_files(source: Path) -> list[Path]:
    """The lists that `read_shar` reads, and their tars."""
    folders = [source] if _find_cuts(source) else list(_find_splits(source).values())
    lists = [cuts for folder in folders for cuts in _find_cuts(folder)]
    return [path for cuts in lists for path in (cuts, _tar_of(cuts)) if path.exists()]


def _find_cuts(folder: Path) -> list[Path]:
    return sorted(path for ending in (".jsonl", ".jsonl.gz") for path in folder.glob(f"cuts*{ending}"))


def _find_splits(source: Path) -> dict[str, Path]:
    return {path.name: path for path in sorted(source.glob("*")) if path.is_dir() and _find_cuts(path)}


def _read_shard(cuts: Path, request: Request, *, prefix: str) -> Iterator[Recording]:
    number, tar = _number_of(cuts), _tar_of(cuts)
    if not tar.exists():
        raise DataError(f"{cuts} has no {tar.name} beside it: write the field recording as audio, not as jsonl, and no .tar.gz.")
    places = {name.rpartition(".")[0]: (name, *place) for name, place in list_members(tar).items() if not _is_manifest(name)}
    for line_number, line in enumerate(_read_lines(cuts), start=1):
        if not line.strip():
            continue
        where = f"{cuts}, line {line_number}"
        try:
            cut = parse_object(line)
            name = cut["id"]
            if not isinstance(name, str):
                raise ValueError("its id is no text")
            check_unicode(name)
            supervisions = _supervisions_of(cut)
        except (ValueError, KeyError) as error:
            raise DataError(
                f"{where}: wanted is a cut of lhotse; found {line[:80].decode(errors='replace')!r} ({error})."
            ) from error
        named = next((item["language"] for item in supervisions if item.get("language")), request.default_language)
        if request.language is None and named is None:
            raise UnnamedLanguageError(f"{where} names no language; give one with --language.")
        language = request.language or normalise_language(named, where=where)
        key = make_key(language, f"{prefix}{number.removeprefix('.') or '0'}-{line_number:06d}")
        recording = Recording(key, tar, "", language, listed_seconds=_duration(cut))
        found = places.get(escape_name(name))
        if found is None or found[0].endswith(f".{_NO_AUDIO}"):
            yield request.judge(recording, ("missing", f"no recording of {name}"), f"{where}: {tar} has no recording of {name}.")
            continue
        recording = replace(recording, member=TarMember(*found))
        try:
            _check_spans(supervisions, recording.listed_seconds)
            text = _join(supervisions)
        except ValueError as error:
            yield request.judge(recording, ("text", str(error)), f"{where}: the text can't be used: {error}.")
        else:
            yield replace(recording, transcript=text)


def _number_of(cuts: Path) -> str:
    return cuts.name.removeprefix("cuts").partition(".jsonl")[0]


def _tar_of(cuts: Path) -> Path:
    return cuts.with_name(f"recording{_number_of(cuts)}.tar")


def _is_manifest(name: str) -> bool:
    return name.rpartition(".")[2] in _MANIFEST_ENDINGS


def _read_lines(path: Path) -> Iterator[bytes]:
    try:
        check_regular(path.stat())
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            while line := file.readline(_LONGEST_LINE_BYTES):
                yield line
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path} can't be read: {error}. Fetch it again.") from error


def _supervisions_of(cut: dict[str, Any]) -> list[dict[str, Any]]:
    supervisions = cut.get("supervisions", [])
    if "tracks" in cut:
        raise ValueError("a mixed cut, whose recordings lie in no tar")
    if not isinstance(supervisions, list) or not all(isinstance(item, dict) for item in supervisions):
        raise ValueError("its supervisions are no list of objects")
    return sorted(supervisions, key=_start)


def _start(supervision: dict[str, Any]) -> float:
    start = supervision.get("start", 0.0)
    if isinstance(start, bool) or not isinstance(start, int | float):
        raise ValueError("a supervision has no time for its start")
    # an integer in JSON may be longer than any float
    if not abs(start) <= LONGEST_SECONDS:
        raise ValueError("a supervision's start is no time")
    return float(start)


def _check_spans(supervisions: list[dict[str, Any]], cut_seconds: float | None) -> None:
    """Raise `ValueError` if the cut has only a part of a supervision's audio: its text says words that can't be heard."""
    for item in supervisions:
        start, end = _start(item), _start(item) + (_duration(item) or 0.0)
        if start < -_SLACK_SECONDS or (cut_seconds is not None and end > cut_seconds + _SLACK_SECONDS):
            raise ValueError(
                f"a supervision from {start:.2f} s to {end:.2f} s reaches beyond its cut: cut anew, without "
                "keep_excessive_supervisions"
            )


def _join(supervisions: list[dict[str, Any]]) -> str:
    texts = [item["text"] for item in supervisions if item.get("text") is not None]
    if not texts or not all(isinstance(text, str) for text in texts):
        raise ValueError("a supervision's text is no text" if texts else "there is no text")
    for text in texts:
        check_unicode(text)
    said = [text.strip() for text in texts if text.strip()]
    # none at all is an empty text, of which whoever reads it tells
    if said and len(said) < len(supervisions):
        raise ValueError(
            f"{len(supervisions) - len(said)} of {len(supervisions)} supervisions have no text, so what is heard in them would "
            "be missing: write it, or make a cut of each with cuts.trim_to_supervisions()"
        )
    return " ".join(said)


def _duration(cut: dict[str, Any]) -> float | None:
    duration = cut.get("duration")
    if not isinstance(duration, int | float) or isinstance(duration, bool) or not 0 < duration <= LONGEST_SECONDS:
        return None
    return float(duration)
