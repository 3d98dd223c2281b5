"""Lists of recordings whose words nobody has written down yet: manifests, and tables that name files in a column."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from kappaspeech.errors import DataError
from kappaspeech.speech.languages import normalise_language
from kappaspeech.speech.layouts import find_recordings
from kappaspeech.speech.manifests import is_manifest, read_untranscribed
from kappaspeech.speech.published import is_common_voice, is_voxpopuli
from kappaspeech.speech.recordings import Recording, make_key
from kappaspeech.speech.text_files import read_lines

# a first line with one of these names columns
_COLUMNS = ("path", "file", "audio", "wav", "audio_filepath", "file_name", "filename")


def is_table(source: Path) -> bool:
    return source.suffix == ".tsv" and source.is_file()


def list_untranscribed(source: Path) -> list[Recording]:
    """The recordings of a manifest (JSON lines), or of a table: Common Voice's, VoxPopuli's, or one file a line before a tab.

    Paths count from the list. Texts are neither needed nor read; a language that isn't named is "". Raises `DataError`.
    """
    if is_manifest(source):
        return list(read_untranscribed(source))
    if is_common_voice(source.parent) or is_voxpopuli(source.parent):
        return find_recordings(source, keeps_faults=True)
    return list(_read_table(source))


def _read_table(source: Path) -> Iterator[Recording]:
    # a corpus has a folder for each language
    folder = source.resolve().parent.name
    language = normalise_language(folder) if re.fullmatch(r"[a-z]{2,3}", folder) else ""
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
