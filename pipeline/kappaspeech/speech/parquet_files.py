"""Data sets of Parquet files, in the layout of the Hugging Face hub: `data/train-00000-of-00004.parquet`."""

from __future__ import annotations

import bisect
import re
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePath

from kappaspeech.errors import DataError
from kappaspeech.speech.languages import normalise_language
from kappaspeech.speech.parquet_rows import PARQUET_SUFFIX, audio_column, group_ends, open_parquet, read_column
from kappaspeech.speech.recordings import Recording, Request, make_key
from kappaspeech.speech.splits import choose_splits, is_split
from kappaspeech.speech.table_columns import name_columns, with_text

# train-00000-of-00004, or train-00000-of-00004-a1b2c3 of earlier days
_PIECE = re.compile(r"(?P<split>.+?)-\d{4,}-of-\d{4,}(-[0-9a-f]+)?")
# of large data sets the hub converts a part
_PARTIAL = "partial-"
_NUM_NAMED = 5


def is_parquet(source: Path) -> bool:
    return (source.suffix == PARQUET_SUFFIX and source.is_file()) or any(_find_files(source))


def read_parquet(source: Path, request: Request) -> Iterator[Recording]:
    """Read a Parquet file, or those in a folder, with a column of audio, one of text and perhaps one of the language.

    The split is in the name of a file or of a folder that it lies in.
    """
    if source.is_file():
        choose_splits(source, [split_of(PurePath(source.name)) or source.stem], request.split)
        yield from _read_file(source, PurePath(source.name), request)
        return
    for place in choose_files(source, [path.relative_to(source) for path in _find_files(source)], request.split):
        yield from _read_file(source / place, place, request)


def choose_files(source: Path, places: Iterable[PurePath], wanted: str | None) -> list[PurePath]:
    """The files of the split that is `wanted`, or of those that `choose_splits` takes.

    Raises `DataError` if it isn't there, and if the files are of several configurations, which may be languages, or hold each
    other's rows.
    """
    splits = {place: split_of(place) for place in places}
    chosen = choose_splits(source, sorted(set(splits.values())), wanted)
    files = [place for place, split in splits.items() if split in chosen]
    configurations = sorted({_configuration_of(place) for place in files})
    if len(configurations) > 1:
        shown = ", ".join(str(folder) for folder in configurations[:_NUM_NAMED])
        more = ", …" if len(configurations) > _NUM_NAMED else ""
        raise DataError(
            f"{source} has files in {len(configurations)} folders ({shown}{more}), each a data set of its own: give one of them, "
            f"as in {source}/{configurations[-1]}."
        )
    return files


def _configuration_of(place: PurePath) -> PurePath:
    """The folder of a file, without one that its split is named by."""
    folder = place.parent
    is_named = _PIECE.fullmatch(place.stem) or is_split(place.stem)
    return folder.parent if not is_named and is_split(folder.name.removeprefix(_PARTIAL)) else folder


def split_of(place: PurePath) -> str:
    """The split of a file by its place in a data set; empty if that doesn't say."""
    piece = _PIECE.fullmatch(place.stem)
    if piece is not None:
        return piece["split"]
    names = (name.removeprefix(_PARTIAL) for name in (place.stem, *reversed(place.parts[:-1])))
    return next(filter(is_split, names), "")


def _find_files(source: Path) -> list[Path]:
    return sorted(path for path in source.glob(f"**/*{PARQUET_SUFFIX}") if not path.name.startswith("."))


def _read_file(path: Path, place: PurePath, request: Request) -> Iterator[Recording]:
    columns = open_parquet(path).schema_arrow.names
    text, named = name_columns(path, columns, request)
    audio_column(path)
    transcripts, ends = read_column(path, text), group_ends(path)
    languages = [request.language] * len(transcripts) if named is None else read_column(path, named)
    for row, (transcript, own) in enumerate(zip(transcripts, languages, strict=True)):
        short = normalise_language(own, where=f"{path} [{row}]")
        key = make_key(short, f"{place.with_suffix('')}-{row:06d}")
        recording = Recording(key, path, "", short, row=row, block=bisect.bisect_right(ends, row))
        yield with_text(recording, text, transcript, request)
