"""The process that started this rank: if a launcher is killed, its ranks would train on, unseen, on taken GPUs."""

from __future__ import annotations

import os
from pathlib import Path

from kappaspeech.processes import read_stat

_DEEPSPEED_MODULE = "deepspeed.launcher.launch"


class LaunchParent:
    """The process that started this one, as it is now. Under `deepspeed` that is a helper, whose own parent counts too."""

    def __init__(self) -> None:
        self._parent = os.getppid()
        self._grandparent = _parent_of(self._parent) if _DEEPSPEED_MODULE in _words_of(self._parent) else None

    def is_gone(self) -> bool:
        """Return whether one of them has ended: a process whose parent ends gets another one."""
        if os.getppid() != self._parent:
            return True
        return self._grandparent is not None and _parent_of(self._parent) != self._grandparent


def _parent_of(pid: int) -> int | None:
    """The parent of a process; None if it can't be found out."""
    try:
        return read_stat(pid).parent
    except OSError:
        return None


def _words_of(pid: int) -> list[str]:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")
    except OSError:
        return []
