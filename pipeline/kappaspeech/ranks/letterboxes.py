"""Bytes that each rank of a group has for each other, exchanged at once: through memory that ranks of a host share, or sent.

Shared memory has no name and no limit of its own: Linux counts it as the process's, and it is gone when the last rank is.
"""

from __future__ import annotations

import json
import mmap
import os
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

# so that a box of any dtype begins on a cache line
_ALIGNMENT = 64
# of what each rank writes into its memory, and the others must find there
_MARK_BYTES = 16
_MESSAGE_BYTES = 512


class Letterboxes(Protocol):
    """Boxes of at most `capacity` bytes, one for each other rank. What is open belongs to this rank until the next `swap`."""

    capacity: int

    def open(self, num_bytes: int) -> list[Tensor]:
        """So many bytes for each other rank, in the order of ranks, to be filled: tensors of uint8."""
        ...

    def swap(self) -> list[Tensor]:
        """The bytes that each other rank has for this one, to be read before the next `open`. A collective."""
        ...


def make_letterboxes(group: Any, capacity: int) -> Letterboxes:
    """Letterboxes of `group`, a process group of torch on processors: shared if all ranks can. A collective."""
    shared = SharedLetterboxes.make(group, capacity)
    return SentLetterboxes(group, capacity) if shared is None else shared


class SentLetterboxes:
    """Letterboxes whose content is sent, from any host to any other."""

    def __init__(self, group: Any, capacity: int) -> None:
        self.capacity = capacity
        self._group, self._rank, self._num_others = group, group.rank(), group.size() - 1
        # each is memory of its own: a view of another dtype begins at a multiple of that dtype's size
        self._outgoing, self._incoming = (torch.empty(self._num_others * capacity, dtype=torch.uint8) for _ in range(2))
        self._num_bytes = 0

    def open(self, num_bytes: int) -> list[Tensor]:
        self._num_bytes = num_bytes
        return self._split(self._outgoing)

    def swap(self) -> list[Tensor]:
        sizes = [self._num_bytes] * self._num_others
        # nothing is sent to this rank itself
        sizes.insert(self._rank, 0)
        total = self._num_others * self._num_bytes
        self._group.alltoall_base(self._incoming[:total], self._outgoing[:total], sizes, sizes).wait()
        return self._split(self._incoming)

    def _split(self, boxes: Tensor) -> list[Tensor]:
        return [boxes[i * self._num_bytes : (i + 1) * self._num_bytes] for i in range(self._num_others)]


class SharedLetterboxes:
    """Letterboxes in memory of each rank that all ranks have mapped, so that each byte is written once and read once.

    Two sets of boxes take turns: whoever opens one again has met the others at the other's `swap`, and they have read it by then.
    """

    def __init__(self, group: Any, capacity: int, memories: list[Tensor]) -> None:
        """`memories` are all ranks', each of `size(group, capacity)` bytes."""
        self.capacity = capacity
        self._group, self._rank, self._memories = group, group.rank(), memories
        self._turn, self._num_bytes, self._is_for_all = 0, 0, False

    @classmethod
    def make(cls, group: Any, capacity: int) -> SharedLetterboxes | None:
        """None on every rank if one can't map another's memory: ranks on several hosts, or apart in containers. A collective."""
        size = cls.size(group, capacity)
        own, found, kernel, mark = None, None, _find_kernel(), os.urandom(_MARK_BYTES)
        if kernel is not None:
            try:
                own = os.memfd_create("kappaspeech")
                os.ftruncate(own, size)
                os.pwrite(own, mark, 0)
            except OSError:
                kernel = None
        try:
            posts = _gather(group, [kernel, os.getpid(), own, mark.hex()])
            # another kernel's processes have the same numbers
            if kernel is not None and all(post[0] == kernel for post in posts):
                try:
                    found = [_map(Path(f"/proc/{pid}/fd/{number}"), size) for _, pid, number, _ in posts]
                    # the numbers are another process's on a host that was copied as it ran, or in a /proc of other processes
                    marks = [bytes(memory[:_MARK_BYTES].numpy()).hex() for memory in found]
                    if marks != [post[3] for post in posts]:
                        found = None
                except (OSError, ValueError):
                    found = None
            can_all = all(_gather(group, found is not None))
        finally:
            if own is not None:
                os.close(own)
        return cls(group, capacity, found) if can_all and found is not None else None

    @staticmethod
    def size(group: Any, capacity: int) -> int:
        """The bytes of each rank's memory."""
        return max(_MARK_BYTES, 2 * (int(group.size()) - 1) * _pad(capacity))

    @property
    def capacity_for_all(self) -> int:
        """The most bytes of a box that all others read."""
        return (len(self._memories) - 1) * _pad(self.capacity)

    def open(self, num_bytes: int) -> list[Tensor]:
        self._turn, self._num_bytes, self._is_for_all = 1 - self._turn, num_bytes, False
        others = range(len(self._memories) - 1)
        return [self._box(self._rank, position) for position in others]

    def open_for_all(self, num_bytes: int) -> Tensor:
        """So many bytes, to be filled once, that every other rank is given at the `swap` in place of a box of its own."""
        self._turn, self._num_bytes, self._is_for_all = 1 - self._turn, num_bytes, True
        return self._box(self._rank, 0)

    def swap(self) -> list[Tensor]:
        self._group.barrier().wait()
        others = (rank for rank in range(len(self._memories)) if rank != self._rank)
        # this rank's place among the others of each
        return [self._box(other, 0 if self._is_for_all else self._rank - (self._rank > other)) for other in others]

    def _box(self, owner: int, position: int) -> Tensor:
        begin = (self._turn * (len(self._memories) - 1) + position) * _pad(self.capacity)
        return self._memories[owner][begin : begin + self._num_bytes]


def _pad(num_bytes: int) -> int:
    return -(-num_bytes // _ALIGNMENT) * _ALIGNMENT


def _find_kernel() -> list[str] | None:
    """Name what two processes share if each finds the other under the other's own number; None without such memory."""
    if not hasattr(os, "memfd_create"):
        return None
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii")
        return [boot, str(Path("/proc/self/ns/pid").readlink())]
    except OSError:
        return None


def _map(path: Path, size: int) -> Tensor:
    number = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        return torch.frombuffer(mmap.mmap(number, size), dtype=torch.uint8)
    finally:
        os.close(number)


def _gather(group: Any, value: Any) -> list[Any]:
    """A small value of each rank, as JSON. A collective."""
    mine = torch.frombuffer(bytearray(json.dumps(value).encode("ascii").ljust(_MESSAGE_BYTES)), dtype=torch.uint8)
    assert len(mine) == _MESSAGE_BYTES
    everything = torch.empty(group.size() * _MESSAGE_BYTES, dtype=torch.uint8)
    group._allgather_base(everything, mine).wait()
    return [json.loads(bytes(part.numpy())) for part in everything.chunk(group.size())]
