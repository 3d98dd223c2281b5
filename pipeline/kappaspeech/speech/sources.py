"""Sources, opened: local files here, remote ones in `remote`, a local copy of their blocks in `block_cache`."""

from __future__ import annotations

import io
import os
import stat
import threading
from collections.abc import Callable
from typing import Any

from kappaspeech.errors import DataError
from kappaspeech.speech.source import ReadOptions, Source, is_remote


def open_source(where: str, options: ReadOptions) -> Source:
    """A local file or a URL. Nothing is read yet."""
    if not is_remote(where):
        return LocalSource(where)
    from kappaspeech.speech.block_cache import CachedSource
    from kappaspeech.speech.remote import RemoteSource

    source = RemoteSource(where, options)
    return CachedSource(source, options) if options.cache_dir else source


class LocalSource:
    """A file of this machine or a mounted file system."""

    def __init__(self, where: str) -> None:
        self.where = where
        self._descriptor: int | None = None
        self._lock = threading.Lock()

    def __del__(self) -> None:
        descriptor: int | None = getattr(self, "_descriptor", None)
        if descriptor is not None:
            os.close(descriptor)

    def num_bytes(self) -> int:
        return self._stat().st_size

    def stamp(self) -> str:
        return str(self._stat().st_mtime_ns)

    def _stat(self) -> os.stat_result:
        try:
            found = os.stat(self.where)
        except (OSError, ValueError) as error:
            raise DataError(f"{self.where} can't be read: {getattr(error, 'strerror', None) or error}.") from error
        # to open a pipe waits for its other end
        if not stat.S_ISREG(found.st_mode):
            raise DataError(f"{self.where} can't be read: it is no regular file.")
        return found

    def read(self, offset: int, size: int) -> bytes:
        try:
            if self._descriptor is None:
                self._stat()
                with self._lock:
                    self._descriptor = self._descriptor or os.open(self.where, os.O_RDONLY)
            # pread takes memory for all that is asked for
            if offset < 0 or size < 0 or offset + size > os.fstat(self._descriptor).st_size:
                raise EOFError(f"{self.where} ends before byte {offset + size}")
            content = os.pread(self._descriptor, size, offset)
            # one call may give fewer than there are: 2 GiB at most, and less over some networks
            while len(content) < size and (more := os.pread(self._descriptor, size - len(content), offset + len(content))):
                content += more
        except OSError as error:
            raise DataError(f"{self.where} can't be read: {error.strerror}.") from error
        if len(content) < size:
            raise EOFError(f"{self.where} ends before byte {offset + size}")
        return content

    def expect(self, offset: int, size: int) -> bool:  # noqa: ARG002 - all of it is here
        return True

    def confirms(self, claim: str, check: Callable[[], bool]) -> bool:  # noqa: ARG002 - nothing is remembered
        return check()


class RangeFile(io.RawIOBase):
    """A source as a seekable file."""

    def __init__(self, source: Source) -> None:
        self._source, self._size, self._place = source, source.num_bytes(), 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._place

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._place = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._place, io.SEEK_END: self._size}[whence]
        return self._place

    def readinto(self, buffer: Any) -> int:
        size = max(0, min(len(buffer), self._size - self._place))
        buffer[:size] = self._source.read(self._place, size) if size else b""
        self._place += size
        return size
