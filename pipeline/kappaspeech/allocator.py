"""The C library's allocator, set for a training or a scan on processors."""

from __future__ import annotations

import ctypes

# glibc's malloc.h: parameters of mallopt
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX = -1, -2, -4
_NEVER = 2**31 - 1
_TOP_PAD_BYTES = 64 << 20


def keep_freed_memory() -> bool:
    """Have glibc keep freed memory for the next tensor; return whether it could be asked.

    By default it gives each large block back to the system and faults its pages in again at the next allocation, which takes
    a tenth to a fifth of a training step on a processor. Its cost is about a sixth more memory. GPUs have an allocator of their
    own, and other C libraries have no such setting.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    settings = ((_MMAP_MAX, 0), (_TRIM_THRESHOLD, _NEVER), (_TOP_PAD, _TOP_PAD_BYTES))
    # each is 1 where it was taken; musl has the name and takes nothing
    taken = [mallopt(ctypes.c_int(name), ctypes.c_int(value)) == 1 for name, value in settings]
    return all(taken)
