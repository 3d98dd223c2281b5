"""Blocks of remote files kept on local disk, bounded, shared by all processes of a host.

A block carries checksums of its pages, so that a part of it is checked without reading the rest.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import struct
import threading
import time
import zlib
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from kappaspeech.speech.cache_folder import KEPT_SHARE, CacheFolder
from kappaspeech.speech.source import FarSource, ReadOptions

_BLOCK_BYTES = 4 << 20
# Smaller than most samples, so that little is checked that isn't wanted.
_PAGE_BYTES = 16 << 10
_CHECKSUM_BYTES = 4
_FOLDER_NAME = "kappaspeech-blocks"
_PATTERN = r"[0-9a-f]{32}/\d{8,}\.block"
_PARALLEL_BLOCKS = 16
# Blocks of a process that are fetched before they are read: those under way, and as many that wait.
_MOST_EXPECTED = 32
# A block that was found is believed to be there for so long; reading, which looks, fetches one that isn't.
_BELIEVED_SECONDS = 1.0
# A folder in which a block couldn't be kept is tried again after so long: somebody may have made room.
_LOOK_AGAIN_SECONDS = 60.0


class CachedSource:
    """A remote file of which read blocks are kept on local disk, least recently used ones removed. Processes share it.

    Nothing is kept of a file without a stamp: it couldn't be told from what takes its place.
    """

    def __init__(self, source: FarSource, options: ReadOptions) -> None:
        assert options.cache_dir is not None
        self._stamp = ""
        self.where = source.where
        self._source = source
        self._options = options
        self._cache = CacheFolder(options.cache_dir, _FOLDER_NAME, pattern=_PATTERN)
        self._folder: str | None = None
        self._size = 0
        self._fetching: dict[int, threading.Lock] = {}
        self._expected: set[int] = set()
        # block → until when it is believed to be there
        self._believed: dict[int, float] = {}

    def num_bytes(self) -> int:
        return self._source.num_bytes()

    def stamp(self) -> str:
        return self._source.stamp()

    def read(self, offset: int, size: int) -> bytes:
        self._check_end(offset + size)
        if not self._stamp:
            return self._source.read(offset, size)
        return b"".join([self._read_part(*part) for part in _split(offset, size)])

    def _read_part(self, number: int, begin: int, end: int) -> bytes:
        # of several threads that want a block, one fetches it
        with self._fetching.setdefault(number, threading.Lock()):
            # nobody need fetch it ahead any more
            self._expected.discard(number)
            part = self._near_part(number, begin, end)
            if part is None and self._keeps_nothing():
                return self._source.read(number * _BLOCK_BYTES + begin, end - begin)
            return self._fetch(number)[begin:end] if part is None else part

    def begin(self, places: Sequence[tuple[int, int]]) -> list[Future[bytes]]:
        return self._source.begin(places)

    def confirms(self, claim: str, check: Callable[[], bool]) -> bool:
        self._check_end(0)
        # without a stamp, a file that was replaced would be taken for the one that was checked
        if not self._stamp:
            return check()
        note = Path(f"{self._folder}/{hashlib.sha256(claim.encode()).hexdigest()[:32]}.checked")
        if not note.exists():
            if not check():
                return False
            with contextlib.suppress(OSError):
                note.parent.mkdir(parents=True, exist_ok=True)
                note.touch()
        return True

    def expect(self, offset: int, size: int) -> bool:
        self._check_end(offset + size)
        if not self._stamp:
            return False
        numbers = range(offset // _BLOCK_BYTES, (offset + size - 1) // _BLOCK_BYTES + 1)
        if self._keeps_nothing():
            return all(map(self._is_kept, numbers))
        for number in numbers:
            is_missing = number not in self._expected and not self._is_kept(number)
            if is_missing and _expected_slots.acquire(blocking=False):
                self._expected.add(number)
                _readers().submit(self._fetch_expected, number)
        return True

    def _is_kept(self, number: int) -> bool:
        now = time.monotonic()
        if self._believed.get(number, 0.0) < now:
            if not os.path.exists(self._path(number)):
                return False
            self._believed[number] = now + _BELIEVED_SECONDS
        return True

    def _fetch_expected(self, number: int) -> None:
        """Fetch a block before it is read. If that fails, reading tries again, and says why."""
        try:
            with self._fetching.setdefault(number, threading.Lock()):
                if number in self._expected and not os.path.exists(self._path(number)):
                    self._fetch(number)
        finally:
            self._expected.discard(number)
            _expected_slots.release()

    def _check_end(self, end: int) -> None:
        if self._folder is None:
            self._size = self._source.num_bytes()
            with contextlib.suppress(OSError):
                self._cache.prepare()
            self._stamp = self._source.stamp()
            name = hashlib.sha256(f"{self.where}\0{self._size}\0{self._stamp}".encode()).hexdigest()[:32]
            self._folder = str(self._cache.path / name)
        if end > self._size:
            raise EOFError(f"{self.where} ends before byte {end}")

    def _path(self, number: int) -> str:
        return f"{self._folder}/{number:08d}.block"

    def _block_size(self, number: int) -> int:
        return min(_BLOCK_BYTES, self._size - number * _BLOCK_BYTES)

    def _near_part(self, number: int, begin: int, end: int) -> bytes | None:
        """Bytes `begin` to `end` of a kept block; None if it isn't kept, was cut short by a full disk, or is damaged."""
        try:
            descriptor = os.open(self._path(number), os.O_RDONLY)
        except OSError:
            return None
        try:
            size = self._block_size(number)
            status = os.fstat(descriptor)
            if status.st_size != _header_bytes(size) + size:
                return None
            self._cache.touch(descriptor, status)
            return _read_checked(descriptor, size, begin, end)
        except OSError:
            return None
        finally:
            os.close(descriptor)

    def _fetch(self, number: int) -> bytes:
        content = self._source.read(number * _BLOCK_BYTES, self._block_size(number))
        # what can't be kept (a full disk) is used all the same
        is_kept = False
        with contextlib.suppress(OSError):
            is_kept = self._keep(Path(self._path(number)), content)
        if not is_kept:
            _refused_until[self._cache.path] = time.monotonic() + _LOOK_AGAIN_SECONDS
        return content

    def _keeps_nothing(self) -> bool:
        """Return whether blocks can't be kept at present: then no more is fetched than is wanted."""
        return time.monotonic() < _refused_until.get(self._cache.path, 0.0)

    def _keep(self, path: Path, content: bytes) -> bool:
        self._cache.prepare()
        block = _checksums(content) + content
        return self._cache.keep(path, block, limit=self._options.cache_bytes, make_room=self._make_room)

    def _make_room(self, wanted: int) -> int:
        """Remove the least recently used blocks until all take at most `wanted` bytes and a little less; what they then take."""
        return self._cache.shrink(min(wanted, self._options.cache_bytes * KEPT_SHARE), over=wanted)


def _header_bytes(size: int) -> int:
    return -(-size // _PAGE_BYTES) * _CHECKSUM_BYTES


def _checksums(content: bytes) -> bytes:
    """CRC-32 of each page, one after the other."""
    view = memoryview(content)
    checksums = [zlib.crc32(view[begin : begin + _PAGE_BYTES]) for begin in range(0, len(content), _PAGE_BYTES)]
    return struct.pack(f"<{len(checksums)}I", *checksums)


def _read_checked(descriptor: int, size: int, begin: int, end: int) -> bytes | None:
    """Bytes `begin` to `end` of a block of `size` bytes; None if a page that they touch isn't as it was written."""
    first, last = begin // _PAGE_BYTES, -(-end // _PAGE_BYTES)
    start = first * _PAGE_BYTES
    content = os.pread(descriptor, min(last * _PAGE_BYTES, size) - start, _header_bytes(size) + start)
    if _checksums(content) != os.pread(descriptor, (last - first) * _CHECKSUM_BYTES, first * _CHECKSUM_BYTES):
        return None
    return content[begin - start : end - start]


def _split(offset: int, size: int) -> list[tuple[int, int, int]]:
    """The blocks that a range touches: (number, first byte in it, end in it)."""
    parts, end = [], offset + size
    for number in range(offset // _BLOCK_BYTES, (end - 1) // _BLOCK_BYTES + 1):
        start = number * _BLOCK_BYTES
        parts.append((number, max(offset - start, 0), min(end - start, _BLOCK_BYTES)))
    return parts


_expected_slots = threading.BoundedSemaphore(_MOST_EXPECTED)
_pool: list[ThreadPoolExecutor] = []
# cache folder → until when it is believed to take nothing
_refused_until: dict[Path, float] = {}
_lock = threading.Lock()


def _readers() -> ThreadPoolExecutor:
    with _lock:
        if not _pool:
            _pool.append(ThreadPoolExecutor(_PARALLEL_BLOCKS, thread_name_prefix="shard-blocks"))
        return _pool[0]
