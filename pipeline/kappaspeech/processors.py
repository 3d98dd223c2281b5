"""The processors that this process may use."""

from __future__ import annotations

import math
import os
from pathlib import Path

_CGROUP_LIMITS = Path("/sys/fs/cgroup/cpu.max")


def count_cores(limits: Path = _CGROUP_LIMITS) -> int:
    """The cores that this process may run on, at least one.

    It is what a scheduler, `taskset` or a container's limit leaves of the host's cores; a limit of 2.5 cores counts as three.
    `limits` is the control group's "quota period", in microseconds.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = limits.read_text(encoding="ascii").split()
        return max(1, min(cores, math.ceil(int(quota) / int(period))))
    except (OSError, ValueError):
        # no control group, or "max", which is no limit
        return cores
