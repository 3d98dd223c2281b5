"""Blocks of remote files kept on local disk, bounded, shared by all processes of a host."""

from __future__ import annotations

import contextlib
import hashlib
import os
import tempfile
import threading
from pathlib import Path

from pipeline.speech.sources import ReadOptions, Source

_BLOCK_BYTES = 4 << 20


class CachedSource:
    """A remote file of which read blocks are kept on local disk, least recently used ones removed. Processes share it."""

    def __init__(self, source: Source, options: ReadOptions) -> None:
        assert options.cache_dir is not None
        self.where = source.where
        self._source = source
        self._options = options
        self._root = Path(options.cache_dir)
        self._folder: Path | None = None
        self._size = 0
        self._fetching: dict[int, threading.Lock] = {}

    def num_bytes(self) -> int:
        return self._source.num_bytes()

    def stamp(self) -> str:
        return self._source.stamp()

    def read(self, offset: int, size: int) -> bytes:
        self._check_end(offset + size)
        parts = []
        for number, begin, end in _split(offset, size):
            # of several threads that want a block, one fetches it
            with self._fetching.setdefault(number, threading.Lock()):
                part = self._near_part(number, begin, end)
                parts.append(self._fetch(number)[begin:end] if part is None else part)
        return b"".join(parts)

    def read_near(self, offset: int, size: int) -> bytes | None:
        self._check_end(offset + size)
        parts: list[bytes] = []
        for number, begin, end in _split(offset, size):
            part = self._near_part(number, begin, end)
            if part is None:
                return None
            parts.append(part)
        return b"".join(parts)

    def _check_end(self, end: int) -> None:
        if self._folder is None:
            self._size = self._source.num_bytes()
            name = hashlib.sha256(f"{self.where}\0{self._size}\0{self._source.stamp()}".encode()).hexdigest()[:32]
            self._folder = self._root / name
        if end > self._size:
            raise EOFError(f"{self.where} ends before byte {end}")

    def _path(self, number: int) -> str:
        return f"{self._folder}/{number:08d}"

    def _block_size(self, number: int) -> int:
        return min(_BLOCK_BYTES, self._size - number * _BLOCK_BYTES)

    def _near_part(self, number: int, begin: int, end: int) -> bytes | None:
        """Bytes `begin` to `end` of a kept block; None where it isn't kept, or was cut short by a full disk."""
        try:
            descriptor = os.open(self._path(number), os.O_RDONLY)
        except OSError:
            return None
        try:
            if os.fstat(descriptor).st_size != self._block_size(number):
                return None
            os.utime(descriptor)
            return os.pread(descriptor, end - begin, begin)
        except OSError:
            return None
        finally:
            os.close(descriptor)

    def _fetch(self, number: int) -> bytes:
        content = self._source.read(number * _BLOCK_BYTES, self._block_size(number))
        # what can't be kept (a full disk) is used all the same
        with contextlib.suppress(OSError):
            self._keep(Path(self._path(number)), content)
        return content

    def _keep(self, path: Path, content: bytes) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        make_room(self._root, self._options.cache_bytes - len(content))
        descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=".")
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(content)
            os.replace(temporary, path)
        except OSError:
            os.unlink(temporary)
            raise


def _split(offset: int, size: int) -> list[tuple[int, int, int]]:
    """The blocks that a range touches: (number, first byte in it, end in it)."""
    parts, end = [], offset + size
    for number in range(offset // _BLOCK_BYTES, (end - 1) // _BLOCK_BYTES + 1):
        start = number * _BLOCK_BYTES
        parts.append((number, max(offset - start, 0), min(end - start, _BLOCK_BYTES)))
    return parts


def make_room(root: Path, limit: int) -> None:
    """Remove the least recently used blocks under `root` until they take at most `limit` bytes."""
    blocks = []
    for path in root.glob("*/*"):
        with contextlib.suppress(OSError):
            status = path.stat()
            blocks.append((status.st_mtime_ns, status.st_size, path))
    total = sum(size for _, size, _ in blocks)
    for _, size, path in sorted(blocks):
        if total <= limit:
            return
        with contextlib.suppress(OSError):
            path.unlink()
        total -= size
