"""Recordings of one's own: folders with a transcripts.tsv each, of languages, splits, speakers, or all at once."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

from kappaspeech.errors import DataError
from kappaspeech.speech.languages import is_known_language, normalise_language, short_language
from kappaspeech.speech.recordings import Recording, Request, make_key
from kappaspeech.speech.regular_files import is_regular
from kappaspeech.speech.splits import choose_splits, is_split
from kappaspeech.speech.text_files import read_lines

TRANSCRIPTS_NAME = "transcripts.tsv"
# a corpus is known by lists that lie no deeper: a language of a split
_NEAR = (TRANSCRIPTS_NAME, f"*/{TRANSCRIPTS_NAME}", f"*/*/{TRANSCRIPTS_NAME}")


def is_transcripts(source: Path) -> bool:
    return any(path for pattern in _NEAR for path in source.glob(pattern))


def read_transcripts(source: Path, request: Request) -> Iterator[Recording]:
    """Read the transcripts.tsv of the folder itself and all those below it. Of a list's path below the folder one part may name
    its split, and the first other one names its language; without one the folder itself does."""
    listings: dict[str, list[Path]] = {}
    for listing in _find_lists(source):
        split = next(filter(is_split, _parts_of(source, listing)), source.resolve().name if request.split else "")
        listings.setdefault(split, []).append(listing)
    chosen = choose_splits(source, list(listings), request.split)
    splits = {Path(os.path.normpath(path.parent)): split for split, paths in listings.items() for path in paths}
    named: dict[Path, Path] = {}
    for listing in (listing for split in chosen for listing in listings[split]):
        language, tag = _name_list(source, listing, request)
        for recording in _read_list(listing, language, request, tag=tag):
            where = Path(os.path.normpath(recording.path))
            first = named.setdefault(where, listing)
            if first is not listing:
                raise DataError(
                    f"{where} is in two lists, {first} and {listing}: take it out of one, or remove the list that repeats "
                    "the other."
                )
            nearest = next((folder for folder in where.parents if folder in splits), None)
            if nearest is not None and splits[nearest] not in chosen:
                raise DataError(
                    f"{listing} names {where}, which lies in {nearest}, another split with a list of its own: take it out of the "
                    "list, or say with --split which split to pack."
                )
            yield recording


def _find_lists(source: Path) -> list[Path]:
    """Every list in a folder and below it, but for what is hidden, each once. ** follows no links to folders; the others do."""
    unique: dict[str, Path] = {}
    for path in sorted(path for pattern in (*_NEAR, f"**/{TRANSCRIPTS_NAME}") for path in source.glob(pattern)):
        if not any(part.startswith(".") for part in _parts_of(source, path)):
            unique.setdefault(os.path.realpath(path), path)
    return list(unique.values())


def _parts_of(source: Path, listing: Path) -> tuple[str, ...]:
    return listing.relative_to(source).parts[:-1]


def _name_list(source: Path, listing: Path, request: Request) -> tuple[str, str]:
    """The language of a list, and what begins its recordings' names. Raises `DataError` if nothing says the language."""
    parts = list(_parts_of(source, listing))
    if split := next(filter(is_split, parts), None):
        parts.remove(split)
    own = source.resolve().name
    says_own = re.fullmatch(r"[a-z]{2,3}", own) is not None and not is_split(own)
    known = [part for part in parts if is_known_language(part)]
    # beside a list of the folder's own, folders may be of speakers
    is_doubtful = bool(parts) and (source / TRANSCRIPTS_NAME).exists() and not is_known_language(parts[0])
    if request.language is None and (is_doubtful or not (parts or says_own) or len(set(map(short_language, known))) > 1):
        says = f"names several languages ({', '.join(known)})" if len(known) > 1 else "doesn't say what language it is"
        raise DataError(
            f"{listing.parent} {says}; give it with --language, which counts for all lists, or move {TRANSCRIPTS_NAME} and its "
            "files into a folder that has the name of their language."
        )
    language = request.language or normalise_language(parts[0] if parts else own, where=str(listing.parent))
    # whatever the folders are then of, speakers or sessions, each may have a 000.flac
    within = parts[1:] if parts and short_language(parts[0]) == language else parts
    return language, "".join(f"{part}/" for part in within)


def _read_list(listing: Path, language: str, request: Request, *, tag: str) -> Iterator[Recording]:
    folder = listing.parent
    for number, line in enumerate(read_lines(listing), start=1):
        if not line.strip():
            continue
        where = f"{listing}, line {number}"
        file, tab, text = line.partition("\t")
        if not tab or not text.strip():
            raise DataError(f"{where}: wanted is file, tab, text; found {line[:80]!r}.")
        # a name that is none isn't there either
        stem = Path(file).with_suffix("").as_posix() if Path(file).name else file
        recording = Recording(make_key(language, f"{tag}{stem}"), folder / file, text.strip(), language)
        if not is_regular(recording.path):
            recording = request.judge(recording, ("missing", "no such file"), f"{where} names {file}, which isn't in {folder}.")
        yield recording
