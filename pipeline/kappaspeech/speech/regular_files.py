"""Files that are files: what a corpus names may be a pipe, a device, or no name of a file at all."""

from __future__ import annotations

from pathlib import Path


def is_regular(path: Path) -> bool:
    """True if there is such a file; False also for names that can't be one."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def is_litter(name: str) -> bool:
    """True for ._NAME, in which macOS keeps a file's attributes beside the file, whatever its ending says."""
    return name.startswith("._")
