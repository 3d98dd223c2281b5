"""Blocks of remote files kept on local disk, bounded, shared by all processes of a host."""

from __future__ import annotations

import contextlib
import hashlib
import os
import tempfile
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

    def num_bytes(self) -> int:
        return self._source.num_bytes()

    def stamp(self) -> str:
        return self._source.stamp()

    def read(self, offset: int, size: int) -> bytes:
        if self._folder is None:
            self._size = self._source.num_bytes()
            name = hashlib.sha256(f"{self.where}\0{self._size}\0{self._source.stamp()}".encode()).hexdigest()[:32]
            self._folder = self._root / name
        if offset + size > self._size:
            raise EOFError(f"{self.where} ends before byte {offset + size}")
        first, last = offset // _BLOCK_BYTES, (offset + max(size, 1) - 1) // _BLOCK_BYTES
        content = b"".join(self._block(number) for number in range(first, last + 1))
        return content[offset - first * _BLOCK_BYTES :][:size]

    def _block(self, number: int) -> bytes:
        assert self._folder is not None
        path = self._folder / f"{number:08d}"
        size = min(_BLOCK_BYTES, self._size - number * _BLOCK_BYTES)
        with contextlib.suppress(OSError):
            content = path.read_bytes()
            # a block that another process's full disk cut short is fetched again
            if len(content) == size:
                os.utime(path)
                return content
        content = self._source.read(number * _BLOCK_BYTES, size)
        # what can't be kept (a full disk) is used all the same
        with contextlib.suppress(OSError):
            self._keep(path, content)
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
