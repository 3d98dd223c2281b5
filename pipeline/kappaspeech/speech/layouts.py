"""Speech corpora as they are published, as one list of recordings.

Known are folders with transcripts.tsv, LibriSpeech, Common Voice, Multilingual LibriSpeech, VoxPopuli, NeMo's manifests (and
any JSON lines with their keys) and tarred data sets, Lhotse Shar, and Hugging Face datasets saved to disk or as Parquet.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from kappaspeech.errors import DataError
from kappaspeech.speech.languages import normalise_language
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
from kappaspeech.speech.recordings import Reader, Recording, Request
from kappaspeech.speech.saved_datasets import is_dataset, read_dataset
from kappaspeech.speech.shar import is_shar, read_shar
from kappaspeech.speech.tar_members import escape_name
from kappaspeech.speech.transcript_lists import TRANSCRIPTS_NAME, is_transcripts, read_transcripts


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
                f"on each line), there or in folders of languages, or one of {', '.join(LAYOUTS)}."
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


# how a corpus is known and read, by name, the surest signs first; the help of `kappaspeech pack` lists them
LAYOUTS: dict[str, tuple[Callable[[Path], bool], Reader]] = {
    "nemo-tars": (is_nemo_tars, read_nemo_tars),
    "manifest": (is_manifest, read_manifest),
    "transcripts": (is_transcripts, read_transcripts),
    "dataset": (is_dataset, read_dataset),
    "shar": (is_shar, read_shar),
    "mls": (is_mls, read_mls),
    "voxpopuli": (is_voxpopuli, read_voxpopuli),
    "commonvoice": (is_common_voice, read_common_voice),
    "librispeech": (is_librispeech, read_librispeech),
    "parquet": (is_parquet, read_parquet),
}
_WITH_COLUMNS = ("nemo-tars", "manifest", "dataset", "parquet")
