"""Facts that Linux gives of a process of this host."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class ProcessStat:
    """A process's state letter, its parent, and its start in clock ticks since boot: proc(5), fields 3, 4 and 22 of stat."""

    state: str
    parent: int
    started: int


def read_stat(pid: int) -> ProcessStat:
    """Read what Linux says of a process. Raises `OSError` if there is no such process, or no /proc."""
    # the name in parentheses, field 2, may hold anything
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    return ProcessStat(fields[0], int(fields[1]), int(fields[19]))
