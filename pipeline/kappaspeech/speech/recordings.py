"""Recordings to pack, and requests to the readers of corpora."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from kappaspeech.errors import DataError
from kappaspeech.outside import read_regular
from kappaspeech.speech.dataset_rows import read_row
from kappaspeech.speech.parquet_rows import PARQUET_SUFFIX, read_parquet_row
from kappaspeech.speech.tar_members import escape_name, read_part
from kappaspeech.speech.text_files import TEXT_KEYS

AUDIO_EXTENSIONS = ("flac", "wav", "mp3", "opus", "ogg")
# No clip that is trained on is near this.
LONGEST_SECONDS = 1e6


@dataclass(frozen=True)
class TarMember:
    """A file in a tar: its name, and its bytes in the tar's."""

    name: str
    offset: int
    num_bytes: int


@dataclass(frozen=True)
class Recording:
    """Something to pack: a file, or `seconds` of it from `begin_seconds` on. It lies at `path`, or in the tar there as `member`,
    or as row `row` of a dataset there.

    Those of one `block` are read together, and so stay together. `listed_seconds` is how long its list says that the whole file
    is. `corpus` is where it was found. `fault` (cause, detail) is why it can't be used, if its list already shows that.
    """

    key: str
    path: Path
    transcript: str
    language: str
    begin_seconds: float = 0.0
    seconds: float | None = None
    row: int | None = None
    member: TarMember | None = None
    block: int | None = None
    listed_seconds: float | None = None
    corpus: str = ""
    fault: tuple[str, str] | None = None

    @property
    def is_whole(self) -> bool:
        """False for a part of a file."""
        return self.seconds is None and not self.begin_seconds

    @property
    def name(self) -> str:
        """The name by which a person finds the recording."""
        within = self.row if self.member is None else self.member.name
        return str(self.path) if within is None else f"{self.path} [{within}]"

    def read(self) -> bytes:
        """The encoded audio it lies in. Raises `OSError`."""
        if self.row is not None:
            return (read_parquet_row if self.path.suffix == PARQUET_SUFFIX else read_row)(self.path, self.row)
        if self.member is not None:
            return read_part(self.path, self.member.offset, self.member.num_bytes)
        return read_regular(self.path)


@dataclass(frozen=True)
class Request:
    """A request to a reader: the `language`, whatever the corpus names, one `split`, whether listed recordings that can't be
    used are kept with their fault, to be left out by name, the name of the column of text if it isn't a usual one, and the
    language of what a list of audio names none for."""

    language: str | None = None
    split: str | None = None
    keeps_faults: bool = False
    text_column: str | None = None
    default_language: str | None = None

    @property
    def text_keys(self) -> tuple[str, ...]:
        """The names of columns or keys in which a text is looked for."""
        return TEXT_KEYS if self.text_column is None else (self.text_column,)

    def judge(self, recording: Recording, fault: tuple[str, str], message: str) -> Recording:
        """A recording that can't be used, if such are kept. Raises `DataError` with `message` else."""
        if not self.keeps_faults:
            raise DataError(message)
        return replace(recording, fault=fault)


Reader = Callable[[Path, Request], Iterator[Recording]]


def make_key(language: str, name: str) -> str:
    """The key of a recording in a shard, without dots, because WebDataset ends a key at its first dot."""
    return escape_name(f"{language}/{name}".replace(".", "-"))
