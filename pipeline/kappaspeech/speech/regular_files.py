"""Files that are files: what a corpus names may be a pipe, a device, or no name of a file at all."""

from __future__ import annotations

import errno
import stat
from pathlib import Path


def read_regular(path: Path) -> bytes:
    """All of a file. `OSError` for what is none: a pipe or a device may never end."""
    if not stat.S_ISREG(path.stat().st_mode):
        raise OSError(errno.EINVAL, "it is no regular file")
    return path.read_bytes()


def is_regular(path: Path) -> bool:
    """Whether there is such a file; also for names that can't be one."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False
