"""Lists of recordings whose words nobody has written down yet: manifests, and tables that name files in a column."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from kappaspeech.errors import DataError
from kappaspeech.speech.languages import normalise_language, short_language
from kappaspeech.speech.layouts import find_recordings
from kappaspeech.speech.manifests import is_manifest, read_untranscribed
from kappaspeech.speech.published import is_common_voice, is_voxpopuli
from kappaspeech.speech.recordings import Recording, make_key
from kappaspeech.speech.text_files import LANGUAGE_KEYS, read_lines, read_table

# a first line with one of these names columns
_COLUMNS = ("path", "file", "audio", "wav", "audio_filepath", "file_name", "filename")
# Common Voice's own tables of clips have these; beside them lie others, as clip_durations.tsv
_PUBLISHED = {"path", "sentence"}
_CLIP_COLUMNS = (*_COLUMNS, "clip")


def is_table(source: Path) -> bool:
    return source.suffix == ".tsv" and source.is_file()


def list_untranscribed(source: Path) -> list[Recording]:
    """The recordings of a manifest (JSON lines), or of a table: Common Voice's, VoxPopuli's, one file a line before a tab, or of
    any columns of which one names files.

    Paths count from the list. Texts are neither needed nor read; a language that isn't named is "". Raises `DataError`.
    """
    if is_manifest(source):
        return list(read_untranscribed(source))
    if is_common_voice(source.parent) and not _PUBLISHED.issubset(_name_columns(source)):
        return list(_read_beside_clips(source))
    if is_common_voice(source.parent) or is_voxpopuli(source.parent):
        return find_recordings(source, keeps_faults=True)
    return list(_read_table(source))


def _name_columns(source: Path) -> list[str]:
    return read_lines(source)[0].split("\t")


def _read_beside_clips(source: Path) -> Iterator[Recording]:
    """A table beside Common Voice's clips that isn't one of its own: a bare name is a clip's. Raises `DataError`."""
    columns = _name_columns(source)
    column = next((name for known in _CLIP_COLUMNS for name in columns if name.strip().lower() == known), None)
    if column is None:
        wanted, there = ", ".join(_CLIP_COLUMNS), ", ".join(columns)
        raise DataError(f"{source} has no column that names files ({wanted}); its first line has: {there[:200]}.")
    for number, row in read_table(source):
        file = row[column].strip()
        if not file:
            raise DataError(f"{source}, line {number} names no file.")
        named_language = next((row[name] for name in LANGUAGE_KEYS if row.get(name)), None)
        language = _language_of_folder(source) if named_language is None else short_language(named_language)
        named = file if Path(file).suffix else f"{file}.mp3"
        place = source.parent / "clips" if Path(named).name == named else source.parent
        yield Recording(make_key(language, Path(named).stem), place / named, "", language)


def _language_of_folder(source: Path) -> str:
    """The language of a corpus that has a folder for each, as de or zh-CN; "" of any other folder, as my-clips."""
    folder = source.resolve().parent.name
    return normalise_language(folder) if re.fullmatch(r"[a-z]{2,3}(-[A-Z]{2})?", folder) else ""


def _read_table(source: Path) -> Iterator[Recording]:
    language = _language_of_folder(source)
    column = None
    for number, line in enumerate(read_lines(source), start=1):
        if not line.strip():
            continue
        fields = line.split("\t")
        if column is None:
            names = [field.strip().lower() for field in fields]
            column = next((names.index(name) for name in _COLUMNS if name in names), -1)
            if column >= 0:
                continue
        file = fields[max(column, 0)].strip() if len(fields) > max(column, 0) else ""
        if not file:
            raise DataError(f"{source}, line {number} names no file; found {line[:80]!r}.")
        yield Recording(make_key(language, f"{number:08d}"), source.parent / file, "", language)
