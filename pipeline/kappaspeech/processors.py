"""The processors that this process may use. As a command, with a number of ranks, it prints one rank's share of the cores."""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Sequence
from pathlib import Path

_CGROUP_LIMITS = Path("/sys/fs/cgroup/cpu.max")


def find_cores() -> frozenset[int]:
    """The numbers of the cores that a scheduler or `taskset` leaves this process of the host's."""
    return frozenset(os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1))


def count_cores(limits: Path = _CGROUP_LIMITS) -> int:
    """The cores that this process may run on, at least one.

    It is what a scheduler, `taskset` or a container's limit leaves of the host's cores; a limit of 2.5 cores counts as three.
    `limits` is the control group's "quota period", in microseconds.
    """
    cores = len(find_cores())
    try:
        quota, period = limits.read_text(encoding="ascii").split()
        return max(1, min(cores, math.ceil(int(quota) / int(period))))
    except (OSError, ValueError):
        # no control group, or "max", which is no limit
        return cores


def share_cores(num_ranks: int) -> int:
    """One rank's share of the cores, of which none is shared, but at least one."""
    return max(1, count_cores() // max(1, num_ranks))


def count_sharing(everywhere: Sequence[tuple[str, frozenset[int]]], rank: int) -> int:
    """The number of ranks, this one among them, that may run on its cores; `everywhere` has (host, cores) of each.

    Under srun, and mpirun with binding, each rank of a host may have cores of its own.
    """
    own_host, own = everywhere[rank]
    return sum(host == own_host and not own.isdisjoint(cores) for host, cores in everywhere)


def _share_named(number: str) -> int:
    """The share by a launcher's number of ranks; if that is none ("auto", ""), one core, as torchrun gives each rank."""
    return share_cores(int(number)) if number.isdecimal() else 1


if __name__ == "__main__":
    print(_share_named("".join(sys.argv[1:2])))
