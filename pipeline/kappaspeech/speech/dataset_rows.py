"""A Hugging Face dataset that was saved to disk, opened once, and the audio of its rows."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

from kappaspeech.errors import DataError
from kappaspeech.needed_packages import need
from kappaspeech.outside import read_regular


@lru_cache(maxsize=2)
def open_dataset(source: Path) -> Any:
    """The dataset in a folder, its audio undecoded. Raises `DataError`."""
    need(f"Reading {source}, a Hugging Face dataset,", "datasets", kind=DataError)
    import datasets

    try:
        dataset = datasets.load_from_disk(str(source))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{source} can't be read as a dataset that was saved to disk: {error}. Save it again.") from error
    for name, feature in dataset.features.items():
        if isinstance(feature, datasets.Audio):
            # the bytes as they are: decoding is this project's own
            dataset = dataset.cast_column(name, datasets.Audio(decode=False))
    return dataset


def audio_column(source: Path) -> str:
    """The name of the column of audio. Raises `DataError` if there is none."""
    dataset = open_dataset(source)
    for name, feature in dataset.features.items():
        if type(feature).__name__ == "Audio":
            return str(name)
    raise DataError(f"{source} has no column of audio; it has {', '.join(dataset.column_names)}.")


def read_row(source: Path, row: int) -> bytes:
    """The encoded audio of a row. Raises `OSError`."""
    audio = open_dataset(source)[row][audio_column(source)]
    content: bytes = audio["bytes"] if audio.get("bytes") else read_regular(Path(audio["path"]))
    return content
