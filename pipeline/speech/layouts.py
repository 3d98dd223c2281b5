"""Speech corpora as they are published, as one list of recordings.

Known are folders with transcripts.tsv, LibriSpeech, Common Voice, Multilingual LibriSpeech, VoxPopuli, NeMo's manifests (and
any JSON lines with their keys), and Hugging Face datasets saved to disk.
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from pipeline.errors import DataError
from pipeline.speech.shards import AUDIO_EXTENSIONS, LANGUAGE_KEYS, TEXT_KEYS, normalise_language

TRANSCRIPTS_NAME = "transcripts.tsv"


@dataclass(frozen=True)
class Recording:
    """Something to pack: a file, `seconds` of it from `begin_seconds` on, or one `row` of a dataset in the folder `path`."""

    key: str
    path: Path
    transcript: str
    language: str
    begin_seconds: float = 0.0
    seconds: float | None = None
    row: int | None = None

    @property
    def name(self) -> str:
        """What a person finds it by."""
        return f"{self.path} [{self.row}]" if self.row is not None else str(self.path)

    def read(self) -> bytes:
        """The encoded audio it lies in. Raises `OSError`."""
        if self.row is None:
            return self.path.read_bytes()
        audio = _open_dataset(self.path)[self.row][_audio_column(self.path)]
        content: bytes = audio["bytes"] if audio.get("bytes") else Path(audio["path"]).read_bytes()
        return content


def find_recordings(source: Path, *, layout: str | None = None, language: str | None = None) -> list[Recording]:
    """All recordings of a corpus in a stable order; `layout` names one of `LAYOUTS`, else it is told from what lies there.

    Raises `DataError` where nothing is recognised, a list can't be understood, or a language isn't known.
    """
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
    recordings = list(LAYOUTS[layout][1](source, normalise_language(language) if language else None))
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


def _key(language: str, name: str) -> str:
    # WebDataset takes a key up to its first dot
    return f"{language}/{name}".replace(".", "-")


# ---- transcripts.tsv ------------------------------------------------------------------------------------------------------


def _is_transcripts(source: Path) -> bool:
    return (source / TRANSCRIPTS_NAME).exists() or any(source.glob(f"*/{TRANSCRIPTS_NAME}"))


def _read_transcripts(source: Path, language: str | None) -> Iterator[Recording]:
    if (source / TRANSCRIPTS_NAME).exists():
        if language is None and not re.fullmatch(r"[a-z]{2,3}", source.name):
            raise DataError(f"{source} doesn't say what language it is; give it with --language.")
        yield from _read_folder(source, language or source.name)
        return
    for path in sorted(source.glob(f"*/{TRANSCRIPTS_NAME}")):
        yield from _read_folder(path.parent, normalise_language(path.parent.name))


def _read_folder(folder: Path, language: str) -> Iterator[Recording]:
    for number, line in enumerate((folder / TRANSCRIPTS_NAME).read_text(encoding="utf-8").splitlines(), start=1):
        if not line.strip():
            continue
        file, tab, text = line.partition("\t")
        if not tab or not text.strip():
            raise DataError(f"{folder / TRANSCRIPTS_NAME}, line {number}: wanted is file, tab, text; found {line[:80]!r}.")
        path = folder / file
        if not path.is_file():
            raise DataError(f"{folder / TRANSCRIPTS_NAME}, line {number} names {file}, which isn't in {folder}.")
        yield Recording(_key(language, Path(file).with_suffix("").as_posix()), path, text.strip(), language)


# ---- published corpora ----------------------------------------------------------------------------------------------------


def _is_librispeech(source: Path) -> bool:
    return source.is_dir() and next(source.glob("**/*.trans.txt"), None) is not None


def _read_librispeech(source: Path, language: str | None) -> Iterator[Recording]:
    """SPEAKER/CHAPTER/SPEAKER-CHAPTER.trans.txt with lines «ID TEXT», ID.flac beside it (openslr.org/12)."""
    language = language or "en"
    for listing in sorted(source.glob("**/*.trans.txt")):
        for line in listing.read_text(encoding="utf-8").splitlines():
            name, _, text = line.partition(" ")
            if name:
                yield Recording(_key(language, name), listing.parent / f"{name}.flac", text.strip(), language)


def _is_common_voice(source: Path) -> bool:
    return (source / "clips").is_dir() and any(source.glob("*.tsv"))


def _read_common_voice(source: Path, language: str | None) -> Iterator[Recording]:
    """clips/ beside validated.tsv, or beside train.tsv where that is missing: columns path, sentence, locale."""
    listing = next((source / f"{name}.tsv" for name in ("validated", "train") if (source / f"{name}.tsv").exists()), None)
    for row in _read_table(listing or sorted(source.glob("*.tsv"))[0]):
        own = language or normalise_language(row.get("locale") or source.name)
        file = row["path"] if Path(row["path"]).suffix else f"{row['path']}.mp3"
        yield Recording(_key(own, Path(file).stem), source / "clips" / file, row["sentence"].strip(), own)


def _is_mls(source: Path) -> bool:
    return (source / "transcripts.txt").exists() and (source / "audio").is_dir()


def _read_mls(source: Path, language: str | None) -> Iterator[Recording]:
    """transcripts.txt with lines «SPEAKER_BOOK_NUMBER, tab, text», audio/SPEAKER/BOOK/ID.flac or .opus (openslr.org/94)."""
    named = re.search(r"mls_([a-z]+)", str(source.resolve()))
    language = language or (normalise_language(named[1]) if named else None)
    if language is None:
        raise DataError(f"{source} doesn't say what language it is; give it with --language.")
    for line in (source / "transcripts.txt").read_text(encoding="utf-8").splitlines():
        name, _, text = line.partition("\t")
        folder = source / "audio" / Path(*name.split("_")[:2])
        file = next((folder / f"{name}.{kind}" for kind in AUDIO_EXTENSIONS if (folder / f"{name}.{kind}").exists()), None)
        yield Recording(_key(language, name), file or folder / f"{name}.flac", text.strip(), language)


def _is_voxpopuli(source: Path) -> bool:
    return any(source.glob("asr_*.tsv"))


def _read_voxpopuli(source: Path, language: str | None) -> Iterator[Recording]:
    """asr_SPLIT.tsv with columns id, raw_text, normalized_text; YEAR/ID.ogg below it (github.com/facebookresearch/voxpopuli)."""
    language = language or normalise_language(source.resolve().name)
    for listing in sorted(source.glob("asr_*.tsv")):
        for row in _read_table(listing):
            name = row.get("id") or row.get("id_") or ""
            text = row.get("raw_text") or row.get("normalized_text") or row.get("normed_text") or ""
            yield Recording(_key(language, name), source / name[:4] / f"{name}.ogg", text.strip(), language)


def _read_table(listing: Path) -> list[dict[str, str]]:
    with listing.open(encoding="utf-8", newline="") as file:
        # these corpora don't quote: a quotation mark is text
        return [
            {key: value or "" for key, value in row.items()}
            for row in csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
        ]


def _is_manifest(source: Path) -> bool:
    return source.is_file() and source.suffix in (".json", ".jsonl", ".manifest")


def _read_manifest(source: Path, language: str | None) -> Iterator[Recording]:
    """A line {audio_filepath, text, duration, offset, lang} each; paths count from the manifest (NVIDIA NeMo)."""
    for number, line in enumerate(source.read_text(encoding="utf-8").splitlines(), start=1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
            path = source.parent / next(
                str(entry[name]) for name in ("audio_filepath", "audio", "path", "wav") if entry.get(name)
            )
            text = next(str(entry[name]) for name in TEXT_KEYS if entry.get(name) is not None)
        except (ValueError, AttributeError, TypeError, StopIteration) as error:
            raise DataError(f"{source}, line {number}: wanted is audio_filepath and text; found {line[:80]!r}.") from error
        own = language or next((normalise_language(str(entry[name])) for name in LANGUAGE_KEYS if entry.get(name)), None)
        if own is None:
            raise DataError(f"{source}, line {number} names no language; give one with --language.")
        begin = float(entry.get("offset") or 0.0)
        seconds = float(entry["duration"]) if "offset" in entry and entry.get("duration") else None
        yield Recording(_key(own, f"{number:08d}-{path.stem}"), path, text.strip(), own, begin, seconds)


def _is_dataset(source: Path) -> bool:
    return (source / "dataset_info.json").exists() and (source / "state.json").exists()


def _read_dataset(source: Path, language: str | None) -> Iterator[Recording]:
    """What `datasets.Dataset.save_to_disk` wrote: a column of audio, one of text, perhaps one of the language."""
    dataset = _open_dataset(source)
    text = next((name for name in TEXT_KEYS if name in dataset.column_names), None)
    named = next((name for name in LANGUAGE_KEYS if name in dataset.column_names), None)
    if text is None:
        raise DataError(f"{source} has no column of text ({', '.join(TEXT_KEYS)}); it has {', '.join(dataset.column_names)}.")
    if language is None and named is None:
        raise DataError(f"{source} has no column that names the language; give it with --language.")
    _audio_column(source)
    languages = [language] * len(dataset) if language or named is None else dataset[named]
    for row, (transcript, own) in enumerate(zip(dataset[text], languages, strict=True)):
        short = normalise_language(str(own))
        yield Recording(_key(short, f"{row:08d}"), source, str(transcript).strip(), short, row=row)


@lru_cache(maxsize=2)
def _open_dataset(source: Path) -> Any:
    try:
        import datasets
    except ImportError as error:
        raise DataError(f"{source} is a Hugging Face dataset; reading it needs «pip install 'kappaspeech[datasets]'».") from error
    dataset = datasets.load_from_disk(str(source))
    for name, feature in dataset.features.items():
        if isinstance(feature, datasets.Audio):
            # the bytes as they are: decoding is this project's own
            dataset = dataset.cast_column(name, datasets.Audio(decode=False))
    return dataset


def _audio_column(source: Path) -> str:
    dataset = _open_dataset(source)
    for name, feature in dataset.features.items():
        if type(feature).__name__ == "Audio":
            return str(name)
    raise DataError(f"{source} has no column of audio; it has {', '.join(dataset.column_names)}.")


LAYOUTS: dict[str, tuple[Callable[[Path], bool], Callable[[Path, str | None], Iterator[Recording]]]] = {
    "manifest": (_is_manifest, _read_manifest),
    "transcripts": (_is_transcripts, _read_transcripts),
    "dataset": (_is_dataset, _read_dataset),
    "mls": (_is_mls, _read_mls),
    "voxpopuli": (_is_voxpopuli, _read_voxpopuli),
    "commonvoice": (_is_common_voice, _read_common_voice),
    "librispeech": (_is_librispeech, _read_librispeech),
}
