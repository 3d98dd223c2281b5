"""A cache's own folder within one that the user names, which may hold anything: nothing but the cache's files is ever removed."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import struct
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from kappaspeech.errors import DataError

# bford.info/cachedir: programs that make backups leave such folders out
MARKER_NAME = "CACHEDIR.TAG"
MARKER_TEXT = (
    "Signature: 8a477f597d28d172789f06886806bc55\n# A cache of kappaspeech, which removes files from it. It can be deleted.\n"
)
_TOTAL_NAME = "total"
_TEMPORARY_SUFFIX = ".tmp"
# Entries that were used within so long of each other may be removed in any order.
_TOUCHED_SECONDS = 0.5
# What a killed process left half-written.
_STALE_SECONDS = 600.0
# A cache that is full is emptied to this share of its limit, so that the next entries need no look at all the others.
KEPT_SHARE = 15 / 16


class CacheFolder:
    """`parent`/`name`, marked as a cache when it is made. All processes of a host share it, and count together what it holds.

    `pattern` is what its entries' paths match, counted from the folder; no other file is counted or removed.
    """

    def __init__(self, parent: str | Path, name: str, *, pattern: str) -> None:
        self.path = Path(parent).expanduser() / name
        self._pattern = re.compile(pattern)

    def prepare(self) -> None:
        """Make the folder. Raises `DataError` if one of that name holds a user's files, `OSError` if none can be made."""
        self.path.mkdir(parents=True, exist_ok=True)
        marker = self.path / MARKER_NAME
        if marker.exists():
            return
        # made and marked by one process while another looks: it is empty until it is marked
        if any(entry.name != MARKER_NAME for entry in self.path.iterdir()) and not marker.exists():
            raise DataError(
                f"{self.path} would be a cache, from which files are removed, but it holds files and no {MARKER_NAME}. "
                "Name another cache folder, or move them."
            )
        marker.write_text(MARKER_TEXT, encoding="utf-8")

    def keep(self, path: Path, content: bytes, *, limit: int, make_room: Callable[[int], int]) -> bool:
        """Write an entry, whole or not at all, unless the cache would hold more than `limit` bytes; say whether there was room.
        Raises `OSError`.

        `make_room(wanted)` removes what may go until entries take at most `wanted` bytes, and returns how many they take. It is
        called only when the count is over the limit, so that an entry costs no look at all the others.
        """
        has_room = self._reserve(len(content), limit, make_room)
        if has_room:
            self.write(path, content)
        return has_room

    def shrink(self, most_bytes: float, *, over: int, may_go: Callable[[Path], bool] = lambda _: True) -> int:
        """Remove the oldest entries that `may_go`, if all take more than `over` bytes, until they take at most `most_bytes`;
        return the bytes that are left. `most_bytes` is no larger than `over`."""
        entries = self.entries()
        total = sum(size for _, size, _ in entries)
        if total <= over:
            return total
        for _, size, path in entries:
            if total <= most_bytes:
                break
            if may_go(path):
                with contextlib.suppress(OSError):
                    path.unlink()
                    total -= size
        return total

    @staticmethod
    def touch(descriptor: int, status: os.stat_result) -> None:
        """Mark an open entry as used just now, if that isn't what it says. Raises `OSError`."""
        if not 0 <= time.time() - status.st_mtime < _TOUCHED_SECONDS:
            os.utime(descriptor)

    def write(self, path: Path, content: bytes) -> None:
        """Write a file, whole or not at all, without counting it. Raises `OSError`."""
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=".", suffix=_TEMPORARY_SUFFIX)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(content)
            os.replace(temporary, path)
        except OSError:
            os.unlink(temporary)
            raise

    def entries(self) -> list[tuple[int, int, Path]]:
        """(modification time in ns, bytes, path) of every entry, the oldest first."""
        found = []
        for path in self.path.glob("*/**/*"):
            with contextlib.suppress(OSError):
                status = path.lstat()
                if self._pattern.fullmatch(path.relative_to(self.path).as_posix()):
                    found.append((status.st_mtime_ns, status.st_size, path))
                elif path.name.startswith(".") and path.suffix == _TEMPORARY_SUFFIX:
                    self._sweep(path, status)
        return sorted(found)

    @staticmethod
    def _sweep(path: Path, status: os.stat_result) -> None:
        if time.time() - status.st_mtime > _STALE_SECONDS:
            path.unlink()

    def _reserve(self, size: int, limit: int, make_room: Callable[[int], int]) -> bool:
        """Count `size` more bytes in, if there is room."""
        with self.locked() as descriptor:
            content = os.pread(descriptor, 8, 0)
            total = struct.unpack("<q", content)[0] if len(content) == 8 else limit
            if total < 0 or total + size > limit:
                total = make_room(limit - size)
            has_room: bool = total + size <= limit
            os.pwrite(descriptor, struct.pack("<q", total + size if has_room else total), 0)
            return has_room

    @contextlib.contextmanager
    def locked(self) -> Iterator[int]:
        """Let no other process change the cache meanwhile; yields the file of its count. Raises `OSError`."""
        descriptor = os.open(self.path / _TOTAL_NAME, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            # a file system without locks: the count may be a little off, until the next look sets it right
            with contextlib.suppress(OSError):
                fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield descriptor
        finally:
            os.close(descriptor)
