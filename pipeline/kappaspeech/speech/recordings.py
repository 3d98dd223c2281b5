"""Recordings to pack, and requests to the readers of corpora."""

from __future__ import annotations

import errno
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from kappaspeech.errors import DataError
from kappaspeech.speech.tar_members import escape_name


@dataclass(frozen=True)
class Recording:
    """Something to pack: a file, `seconds` of it from `begin_seconds` on, or what `open_audio` gives in place of the file.

    `row` is its number in a dataset in the folder `path`. `listed_seconds` is how long its list says that the whole file is.
    `corpus` is where it was found. A `fault` (cause, detail) is why it can't be used, where
    its list already shows that.
    """

    key: str
    path: Path
    transcript: str
    language: str
    begin_seconds: float = 0.0
    seconds: float | None = None
    row: int | None = None
    listed_seconds: float | None = None
    corpus: str = ""
    fault: tuple[str, str] | None = None

    @property
    def name(self) -> str:
        """The name by which a person finds the recording."""
        return f"{self.path} [{self.row}]" if self.row is not None else str(self.path)

    def read(self) -> bytes:
        """The encoded audio it lies in. Raises `OSError`."""
        if self.row is not None:
            from kappaspeech.speech.saved_datasets import read_row

            return read_row(self.path, self.row)
        return read_regular(self.path)


@dataclass(frozen=True)
class Request:
    """A request to a reader: the `language` if the corpus names none, one `split`, and whether listed recordings that can't be
    used are kept with their fault, to be left out by name."""

    language: str | None = None
    split: str | None = None
    keeps_faults: bool = False

    def judge(self, recording: Recording, fault: tuple[str, str], message: str) -> Recording:
        """A recording that can't be used, if such are kept. Raises `DataError` with `message` else."""
        if not self.keeps_faults:
            raise DataError(message)
        return replace(recording, fault=fault)


Reader = Callable[[Path, Request], Iterator[Recording]]


def read_regular(path: Path) -> bytes:
    """All of a file. `OSError` for what is none: a pipe or a device may never end."""
    if not stat.S_ISREG(path.stat().st_mode):
        raise OSError(errno.EINVAL, "it is no regular file")
    return path.read_bytes()


def is_regular(path: Path) -> bool:
    """Return whether a file exists; False for names that can't be one."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def make_key(language: str, name: str) -> str:
    """The key of a recording in a shard, without dots, because WebDataset ends a key at its first dot."""
    return escape_name(f"{language}/{name}".replace(".", "-"))
