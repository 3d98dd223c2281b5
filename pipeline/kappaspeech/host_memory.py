"""The memory that this host has left for its processes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

_OWN_GROUPS, _MOUNT = Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")
# of the one hierarchy, and of the older memory controller's own: limit, use, and the file cache that the kernel gives up for more
_NAMES = {
    "": ("memory.max", "memory.current", ("active_file", "inactive_file")),
    "memory": ("memory.limit_in_bytes", "memory.usage_in_bytes", ("total_active_file", "total_inactive_file")),
}


def free_memory_bytes(*, own_groups: Path = _OWN_GROUPS, mount: Path = _MOUNT) -> int:
    """Bytes that can be taken without swapping, and without passing the limit of a container or a scheduler's job.

    `own_groups` lists this process's control groups, which lie below `mount`.
    """
    import psutil

    return min([int(psutil.virtual_memory().available), *_leeways(own_groups, mount)])


def _leeways(own_groups: Path, mount: Path) -> Iterator[int]:
    """The memory left below the limit of each control group that this process is in."""
    try:
        lines = own_groups.read_text(encoding="utf-8").splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        kind = "memory" if "memory" in controllers.split(",") else controllers
        if kind not in _NAMES:
            continue
        root = mount / kind
        # a container sees its own group as the root, whatever path it has outside
        group = root / path.lstrip("/")
        for folder in (group, *(parent for parent in group.parents if parent.is_relative_to(root))):
            yield from _leeway(folder, *_NAMES[kind])


def _leeway(folder: Path, limit: str, used: str, cache: tuple[str, ...]) -> Iterator[int]:
    try:
        most, now = (int((folder / name).read_text(encoding="ascii")) for name in (limit, used))
        fields = (line.split() for line in (folder / "memory.stat").read_text(encoding="ascii").splitlines())
        given_up = sum(int(value) for name, value in fields if name in cache)
    except (OSError, ValueError):
        # no such group here, or "max", which is no limit
        return
    yield max(0, most - max(0, now - given_up))
