"""Hugging Face datasets that were saved to disk, alone or as a dictionary of splits."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from kappaspeech.speech.dataset_rows import audio_column, open_dataset
from kappaspeech.speech.languages import normalise_language
from kappaspeech.speech.recordings import Recording, Request, make_key
from kappaspeech.speech.splits import choose_splits
from kappaspeech.speech.table_columns import name_columns, with_text


def is_dataset(source: Path) -> bool:
    return _is_one(source) or (source / "dataset_dict.json").exists()


def _is_one(source: Path) -> bool:
    return (source / "dataset_info.json").exists() and (source / "state.json").exists()


def read_dataset(source: Path, request: Request) -> Iterator[Recording]:
    """Read what `datasets.Dataset.save_to_disk` wrote, with a column of audio, one of text and perhaps one of the language; or
    what `DatasetDict.save_to_disk` wrote, with one folder per split."""
    if _is_one(source):
        own = str(open_dataset(source).split or source.resolve().name)
        choose_splits(source, [own], request.split)
        yield from _read_one(source, request, "")
        return
    folders = {folder.name: folder for folder in sorted(source.iterdir()) if _is_one(folder)}
    chosen = choose_splits(source, list(folders), request.split)
    for split in chosen:
        yield from _read_one(folders[split], request, f"{split}-" if len(chosen) > 1 else "")


def _read_one(source: Path, request: Request, prefix: str) -> Iterator[Recording]:
    dataset = open_dataset(source)
    text, named = name_columns(source, dataset.column_names, request)
    audio_column(source)
    languages = [request.language] * len(dataset) if named is None else _names_of(dataset, named)
    for row, (transcript, own) in enumerate(zip(dataset[text], languages, strict=True)):
        short = normalise_language(own, where=f"{source} [{row}]")
        recording = Recording(make_key(short, f"{prefix}{row:08d}"), source, "", short, row=row)
        yield with_text(recording, text, transcript, request)


def _names_of(dataset: Any, column: str) -> list[Any]:
    """A column's values; the names of classes if it holds their numbers."""
    feature = dataset.features[column]
    return [feature.int2str(value) for value in dataset[column]] if hasattr(feature, "int2str") else list(dataset[column])
