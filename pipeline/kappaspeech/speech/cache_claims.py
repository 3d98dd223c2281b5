"""Claims on a cache's entries: what present runs ask for, so that a run with other data takes the room of what nobody does."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import time
import weakref
from collections.abc import Collection
from typing import BinaryIO

from kappaspeech.speech.cache_folder import CacheFolder

_FOLDER_NAME = "claims"
# The longest that a claim counts if nobody can tell whether its run has ended.
_LONGEST_SECONDS = 86_400.0


class CacheClaims:
    """The claims on a cache: of each set of names one file, which every process that claims them holds locked.

    A lock ends with its process, however that ends. On a file system without locks a claim counts for a day from its making.
    """

    def __init__(self, cache: CacheFolder) -> None:
        self._cache = cache
        self._folder = cache.path / _FOLDER_NAME
        self._own: frozenset[str] = frozenset()
        self._own_name = ""

    def make(self, names: Collection[str]) -> None:
        """Claim these names for as long as this object lives. Raises `OSError`."""
        content = "".join(f"{name}\n" for name in sorted(names)).encode()
        path = self._folder / hashlib.sha256(content).hexdigest()
        # whoever looks for claims that are over has the folder locked, too
        with self._cache.locked():
            if not path.exists():
                self._cache.write(path, content)
            descriptor = os.open(path, os.O_RDWR)
            weakref.finalize(self, os.close, descriptor)
            os.utime(descriptor)
            with contextlib.suppress(OSError):
                fcntl.flock(descriptor, fcntl.LOCK_SH)
        self._own, self._own_name = frozenset(names), path.name

    def read(self) -> set[str]:
        """The names that anybody claims, while the cache's folder is locked; claims that are over are removed. Raises `OSError`
        if one can't be read."""
        names = set(self._own)
        for path in self._folder.iterdir():
            # others are half-written
            if path.name == self._own_name or path.name.startswith("."):
                continue
            with path.open("r+b") as file:
                if _is_over(file):
                    path.unlink()
                else:
                    names.update(file.read().decode().splitlines())
        return names


def _is_over(claim: BinaryIO) -> bool:
    """Return whether nobody holds a claim."""
    try:
        fcntl.flock(claim, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return time.time() - os.fstat(claim.fileno()).st_mtime > _LONGEST_SECONDS
    return True
