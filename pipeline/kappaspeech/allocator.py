"""Allocators, set before they are used: the C library's for processors, torch's for GPUs; and what oneDNN keeps."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import MutableMapping

from kappaspeech.package_versions import find_version

# glibc's malloc.h: parameters of mallopt
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX = -1, -2, -4
_NEVER = 2**31 - 1
_TOP_PAD_BYTES = 64 << 20
# the first is what every torch from 2.6 on reads, before the second
_CUDA_OPTIONS, _OPTIONS = "PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF"
# oneDNN's, and that of the layer between it and torch: each keeps 1,024 by default
_PRIMITIVE_CACHES = ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY")
_NUM_PRIMITIVES = "64"
# builds of torch without CUDA, whose versions end so
_NOT_CUDA = ("+cpu", "+rocm", "+xpu")


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


def expand_segments(variables: MutableMapping[str, str]) -> None:
    """Have torch's allocator for CUDA grow its segments in place, unless `variables` have options of the user's for it.

    Batches of any length leave gaps between segments of fixed sizes. Call it before torch is loaded. Only CUDA on Linux has it:
    elsewhere torch warns that it hasn't.
    """
    is_cuda = not any(build in (find_version("torch") or "") for build in _NOT_CUDA)
    if sys.platform == "linux" and is_cuda and _CUDA_OPTIONS not in variables and _OPTIONS not in variables:
        variables[_CUDA_OPTIONS] = "expandable_segments:True"


def keep_few_primitives(variables: MutableMapping[str, str]) -> None:
    """Have oneDNN keep the products of the last shapes alone, unless `variables` say how many. Call it before torch is loaded.

    It prepares a product for each new shape and keeps it, half a megabyte each. Batches of any length bring new shapes in each
    step, which seldom come back; what is kept of them lies between freed blocks, which no large tensor fits any more.
    """
    for name in _PRIMITIVE_CACHES:
        variables.setdefault(name, _NUM_PRIMITIVES)
