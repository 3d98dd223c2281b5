"""LibriSpeech, Common Voice, Multilingual LibriSpeech and VoxPopuli, as they are published."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from kappaspeech.errors import DataError
from kappaspeech.speech.languages import normalise_language
from kappaspeech.speech.recordings import AUDIO_EXTENSIONS, Recording, Request, make_key
from kappaspeech.speech.regular_files import is_litter, is_regular
from kappaspeech.speech.splits import choose_splits, is_split
from kappaspeech.speech.text_files import read_lines, read_table

_VOXPOPULI_PREFIX = "asr_"


# ---- LibriSpeech ----------------------------------------------------------------------------------------------------------


def is_librispeech(source: Path) -> bool:
    return source.is_dir() and next(source.glob("**/*.trans.txt"), None) is not None


def read_librispeech(source: Path, request: Request) -> Iterator[Recording]:
    """Read SPEAKER/CHAPTER/SPEAKER-CHAPTER.trans.txt with lines "ID TEXT", ID.flac beside it (openslr.org/12)."""
    language = request.language or "en"
    listings: dict[str, list[Path]] = {}
    for listing in sorted(source.glob("**/*.trans.txt")):
        if not is_litter(listing.name):
            parts = listing.relative_to(source).parts[:-1]
            split = next((part for part in parts if is_split(part)), source.resolve().name if request.split else "")
            listings.setdefault(split, []).append(listing)
    for split in choose_splits(source, list(listings), request.split):
        for listing in listings[split]:
            for line in read_lines(listing):
                name, _, text = line.partition(" ")
                if name:
                    yield Recording(make_key(language, name), listing.parent / f"{name}.flac", text.strip(), language)


# ---- Common Voice ---------------------------------------------------------------------------------------------------------


def is_common_voice(source: Path) -> bool:
    return (source / "clips").is_dir() and any(source.glob("*.tsv"))


def read_common_voice(source: Path, request: Request) -> Iterator[Recording]:
    """Read clips/ beside SPLIT.tsv: columns path, sentence, locale. Unasked it is train.tsv: validated.tsv holds dev and test
    too.
    """
    listing = _choose_table(source, request.split)
    for number, row in read_table(listing):
        if "path" not in row or "sentence" not in row:
            raise DataError(f"{listing} has no columns path and sentence; it has {', '.join(row)}.")
        where = f"{listing}, line {number}"
        if not row["path"]:
            raise DataError(f"{where} names no clip.")
        own = request.language or normalise_language(row.get("locale") or source.resolve().name, where=where)
        file = row["path"] if Path(row["path"]).suffix else f"{row['path']}.mp3"
        yield Recording(make_key(own, Path(file).stem), source / "clips" / file, row["sentence"].strip(), own)


def _choose_table(source: Path, split: str | None) -> Path:
    tables = {path.stem: path for path in sorted(source.glob("*.tsv")) if not is_litter(path.name)}
    splits = [name for name in tables if is_split(name)]
    if split is not None:
        return tables[choose_splits(source, splits, split)[0]]
    if "train" in tables:
        return tables["train"]
    if held_out := [name for name in ("dev", "test") if name in tables]:
        raise DataError(
            f"{source} has {', '.join(held_out)} and no train.tsv: say with --split which of {', '.join(splits)} to pack."
        )
    if not tables:
        raise DataError(f"{source} has no table (train.tsv, dev.tsv, test.tsv) beside its clips.")
    return tables.get("validated") or next(iter(tables.values()))


# ---- Multilingual LibriSpeech ---------------------------------------------------------------------------------------------


def is_mls(source: Path) -> bool:
    return _is_mls_split(source) or any(_is_mls_split(folder) for folder in source.glob("*"))


def _is_mls_split(folder: Path) -> bool:
    return (folder / "transcripts.txt").exists() and (folder / "audio").is_dir()


def read_mls(source: Path, request: Request) -> Iterator[Recording]:
    """Read transcripts.txt with lines "SPEAKER_BOOK_NUMBER, tab, text", audio/SPEAKER/BOOK/ID.flac or .opus (openslr.org/94); of
    one split, or of the folder that holds all.
    """
    named = re.findall(r"mls_([a-z]+)", str(source.resolve()))
    language = request.language or (normalise_language(named[-1], where=str(source)) if named else None)
    if language is None:
        raise DataError(f"{source} doesn't say what language it is; give it with --language.")
    folders = [source] if _is_mls_split(source) else [folder for folder in sorted(source.glob("*")) if _is_mls_split(folder)]
    by_split = {folder.resolve().name: folder for folder in folders}
    for split in choose_splits(source, list(by_split), request.split):
        folder = by_split[split]
        for line in read_lines(folder / "transcripts.txt"):
            name, _, text = line.partition("\t")
            if name:
                yield Recording(make_key(language, name), _find_audio(folder / "audio", name), text.strip(), language)


def _find_audio(folder: Path, name: str) -> Path:
    stem = folder / Path(*name.split("_")[:2]) / name
    files = [stem.with_name(f"{stem.name}.{kind}") for kind in AUDIO_EXTENSIONS]
    return next((file for file in files if is_regular(file)), files[0])


# ---- VoxPopuli ------------------------------------------------------------------------------------------------------------


def is_voxpopuli(source: Path) -> bool:
    return any(source.glob(f"{_VOXPOPULI_PREFIX}*.tsv"))


def read_voxpopuli(source: Path, request: Request) -> Iterator[Recording]:
    """Read asr_SPLIT.tsv with columns id, raw_text, normalized_text; YEAR/ID.ogg below it
    (github.com/facebookresearch/voxpopuli).
    """
    language = request.language or normalise_language(source.resolve().name, where=str(source))
    tables = {path.stem.removeprefix(_VOXPOPULI_PREFIX): path for path in sorted(source.glob(f"{_VOXPOPULI_PREFIX}*.tsv"))}
    for split in choose_splits(source, list(tables), request.split):
        for number, row in read_table(tables[split]):
            name = row.get("id") or row.get("id_") or ""
            if not name:
                raise DataError(f"{tables[split]}, line {number} names no recording (columns {', '.join(row)}).")
            text = row.get("raw_text") or row.get("normalized_text") or row.get("normed_text") or ""
            yield Recording(make_key(language, name), source / name[:4] / f"{name}.ogg", text.strip(), language)
