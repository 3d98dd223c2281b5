"""Speech corpora as they are published, as one list of recordings.

Known are folders with transcripts.tsv, LibriSpeech, Common Voice, Multilingual LibriSpeech, VoxPopuli, NeMo's manifests (and
any JSON lines with their keys) and tarred data sets, Lhotse Shar, and Hugging Face datasets saved to disk or as Parquet.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

from kappaspeech.errors import DataError
from kappaspeech.speech.languages import normalise_language, short_language
from kappaspeech.speech.manifests import is_manifest, read_manifest
from kappaspeech.speech.nemo_tars import is_nemo_tars, read_nemo_tars
from kappaspeech.speech.parquet_files import is_parquet, read_parquet
from kappaspeech.speech.published import (
    is_common_voice,
    is_librispeech,
    is_mls,
    is_voxpopuli,
    read_common_voice,
    read_librispeech,
    read_mls,
    read_voxpopuli,
)
from kappaspeech.speech.recordings import Reader, Recording, Request, make_key
from kappaspeech.speech.regular_files import is_regular
from kappaspeech.speech.saved_datasets import is_dataset, read_dataset
from kappaspeech.speech.shar import is_shar, read_shar
from kappaspeech.speech.splits import choose_splits, is_split
from kappaspeech.speech.tar_members import escape_name
from kappaspeech.speech.text_files import read_lines

TRANSCRIPTS_NAME = "transcripts.tsv"


def find_recordings(
    source: Path,
    *,
    layout: str | None = None,
    language: str | None = None,
    split: str | None = None,
    keeps_faults: bool = False,
    text_column: str | None = None,
    default_language: str | None = None,
) -> list[Recording]:
    """All recordings of a corpus in a stable order; `layout` names one of `LAYOUTS`, else it is recognised by the files.

    `split` names one of the corpus's own, as does the path of a split's table; without it what is held out isn't taken if
    there is something to train on. With `keeps_faults` recordings that the corpus lists and that can't be used are kept, to be
    left out by name. `text_column` is where a layout that has columns keeps its text, if not under a usual name. `language` is
    that of all recordings, `default_language` that of lines of a list that name none. Raises `DataError` if nothing is
    recognised, a list can't be understood, or a language isn't known.
    """
    if source.suffix == ".tsv" and source.is_file() and (is_common_voice(source.parent) or is_voxpopuli(source.parent)):
        source, split = source.parent, source.stem.removeprefix("asr_")
    if layout is None:
        layout = next((name for name, (recognises, _) in LAYOUTS.items() if recognises(source)), None)
        if layout is None:
            found = ", ".join(sorted(entry.name for entry in source.iterdir())[:5]) if source.is_dir() else "no folder"
            raise DataError(
                f"{source} holds no corpus that is known ({found or 'nothing'}). Wanted is {TRANSCRIPTS_NAME} (file, tab, text "
                f"on each line), there or in a folder a language, or one of {', '.join(LAYOUTS)}."
            )
    if layout not in LAYOUTS:
        raise DataError(f"There is no layout {layout!r}. There are: {', '.join(LAYOUTS)}.")
    if text_column is not None and layout not in _WITH_COLUMNS:
        raise DataError(f"{source}, read as {layout}, has no columns to choose from: leave out --text-column.")
    short = normalise_language(language, where="--language") if language else None
    default = normalise_language(default_language, where="--language") if default_language else None
    request = Request(short, split, keeps_faults, text_column, default)
    corpus = f"{escape_name(str(source.resolve()))}{f' [{split}]' if split else ''}"
    try:
        recordings = [replace(recording, corpus=corpus) for recording in LAYOUTS[layout][1](source, request)]
    except OSError as error:
        raise DataError(f"{source} can't be read as {layout}: {error}.") from error
    if not recordings:
        raise DataError(f"{source} holds no recording, read as {layout}.")
    _refuse_repeats(source, recordings)
    return recordings


def _refuse_repeats(source: Path, recordings: list[Recording]) -> None:
    seen: dict[str, Recording] = {}
    for recording in recordings:
        other = seen.setdefault(recording.key, recording)
        if other is not recording:
            raise DataError(f"{source}: {other.name} and {recording.name} would both be packed as {recording.key}.")


def _is_transcripts(source: Path) -> bool:
    return _holds_transcripts(source) or bool(_split_folders(source))


def _holds_transcripts(folder: Path) -> bool:
    return (folder / TRANSCRIPTS_NAME).exists() or any(_language_folders(folder))


def _language_folders(folder: Path) -> list[Path]:
    return [path.parent for path in sorted(folder.glob(f"*/{TRANSCRIPTS_NAME}")) if not is_split(path.parent.name)]


def _split_folders(source: Path) -> dict[str, Path]:
    return {path.name: path for path in sorted(source.glob("*")) if is_split(path.name) and _holds_transcripts(path)}


def _read_transcripts(source: Path, request: Request) -> Iterator[Recording]:
    """Read the transcripts.tsv of the folder itself, of a folder per language below it, or of such folders per split."""
    splits = _split_folders(source)
    if _holds_transcripts(source) and (request.split is None or not splits):
        choose_splits(source, [source.resolve().name], request.split)
        splits = {source.name: source}
    for split in choose_splits(source, list(splits), None if source in splits.values() else request.split):
        folder = splits[split]
        if not (folder / TRANSCRIPTS_NAME).exists():
            for path in _language_folders(folder):
                named = request.language or normalise_language(path.name, where=str(path))
                # whatever the folders are then of, speakers or sessions, each may have a 000.flac
                tag = "" if short_language(path.name) == named else f"{path.name}/"
                yield from _read_folder(path, named, request, tag=tag)
        else:
            if request.language is None and not re.fullmatch(r"[a-z]{2,3}", folder.name):
                raise DataError(f"{folder} doesn't say what language it is; give it with --language.")
            yield from _read_folder(folder, request.language or normalise_language(folder.name, where=str(folder)), request)


def _read_folder(folder: Path, language: str, request: Request, *, tag: str = "") -> Iterator[Recording]:
    for number, line in enumerate(read_lines(folder / TRANSCRIPTS_NAME), start=1):
        if not line.strip():
            continue
        where = f"{folder / TRANSCRIPTS_NAME}, line {number}"
        file, tab, text = line.partition("\t")
        if not tab or not text.strip():
            raise DataError(f"{where}: wanted is file, tab, text; found {line[:80]!r}.")
        # a name that is none isn't there either
        stem = Path(file).with_suffix("").as_posix() if Path(file).name else file
        recording = Recording(make_key(language, f"{tag}{stem}"), folder / file, text.strip(), language)
        if not is_regular(recording.path):
            recording = request.judge(recording, ("missing", "no such file"), f"{where} names {file}, which isn't in {folder}.")
        yield recording


# how a corpus is known and read, by name, the surest signs first; the help of `kappaspeech pack` lists them
LAYOUTS: dict[str, tuple[Callable[[Path], bool], Reader]] = {
    "nemo-tars": (is_nemo_tars, read_nemo_tars),
    "manifest": (is_manifest, read_manifest),
    "transcripts": (_is_transcripts, _read_transcripts),
    "dataset": (is_dataset, read_dataset),
    "shar": (is_shar, read_shar),
    "mls": (is_mls, read_mls),
    "voxpopuli": (is_voxpopuli, read_voxpopuli),
    "commonvoice": (is_common_voice, read_common_voice),
    "librispeech": (is_librispeech, read_librispeech),
    "parquet": (is_parquet, read_parquet),
}
_WITH_COLUMNS = ("nemo-tars", "manifest", "dataset", "parquet")
