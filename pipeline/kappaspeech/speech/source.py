"""A source of shards: a file, here or behind a URL, that is read by ranges.

Nothing that is read can run code: there is no `pipe:` and nothing is unpickled.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Protocol
from urllib.parse import urlsplit

from kappaspeech.errors import DataError
from kappaspeech.needed_packages import need

# scheme → the library by which fsspec reads it
_READERS = {"http": "aiohttp", "https": "aiohttp", "s3": "s3fs", "gs": "gcsfs"}
REMOTE_SCHEMES = tuple(_READERS)


@dataclass(frozen=True)
class ReadOptions:
    """Options of reading remote shards. A range is tried `attempts` times; `cache_dir` keeps at most `cache_bytes` of blocks."""

    attempts: int = 6
    stall_seconds: float = 30.0
    cache_dir: str | None = None
    cache_bytes: int = 20 << 30


class Source(Protocol):
    """One file, read by ranges. Safe to use from several threads."""

    where: str

    def num_bytes(self) -> int:
        """The file's size now. Raises `DataError` if it isn't there."""

    def stamp(self) -> str:
        """A file's modification time or ETag, which changes if the file is replaced; "" if neither is known."""

    def read(self, offset: int, size: int) -> bytes:
        """Exactly that range. Raises `DataError` if it can't be had, `EOFError` if the file ends before."""

    def expect(self, offset: int, size: int) -> bool:
        """Prepare to `read` that range soon. False if it has to be begun: nothing of it will be on this machine's disk.

        Raises as `read` does.
        """

    def confirms(self, claim: str, check: Callable[[], bool]) -> bool:
        """Return what `check` says of a claim about the file, or said of it before, of the same version of the file."""


class FarSource(Source, Protocol):
    """A source that may not expect a range."""

    def begin(self, places: Sequence[tuple[int, int]]) -> list[Future[bytes]]:
        """Begin to `read` each (offset, size); the results are what it returns or raises. Raises `DataError` if it can't be."""


def need_reader(where: str) -> None:
    """Raise `DataError` if the libraries that read a URL aren't installed; a path needs none."""
    if scheme := scheme_of(where):
        need_reader_of(scheme)


def need_reader_of(scheme: str) -> None:
    """Raise `DataError` if the libraries that read URLs of a scheme aren't installed."""
    need(f"Reading {scheme}://", "fsspec", _READERS[scheme], kind=DataError)


def is_remote(where: str) -> bool:
    """True if `where` is a URL. Raises `DataError` for one that is broken, or of a scheme that isn't read."""
    return bool(scheme_of(where))


def scheme_of(where: str) -> str:
    """A URL's scheme; "" of a path. Raises `DataError` for a URL that is broken, or of a scheme that isn't read."""
    if where.startswith("pipe:"):
        scheme = "pipe"
    elif "://" not in where:
        return ""
    else:
        try:
            parts = urlsplit(where)
            scheme, host = parts.scheme, parts.hostname
            # a brace list may stand there
            if "{" not in parts.netloc:
                _ = parts.port
        except ValueError as error:
            raise DataError(f"{where} is no URL that can be read: {error}.") from error
        if scheme in REMOTE_SCHEMES and not host:
            raise DataError(
                f"{where} is no URL that can be read: it names no {'host' if scheme.startswith('http') else 'bucket'}."
            )
    if scheme and scheme not in REMOTE_SCHEMES:
        raise DataError(f"{where}: shards are read from local paths and from {', '.join(REMOTE_SCHEMES)}; not from {scheme}.")
    return scheme
