from __future__ import annotations

import ctypes
import multiprocessing
import platform
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from kappaspeech.allocator import keep_freed_memory
from kappaspeech.commands import main
from tests.patience import patience

BLOCK_BYTES = 64 << 20


def held_after_a_block_was_freed(keeps: bool) -> int:
    """Bytes that this process holds more than before the block was made."""
    libc = ctypes.CDLL(None)
    libc.malloc.restype, libc.malloc.argtypes, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_size_t], [ctypes.c_void_p]
    if keeps:
        assert keep_freed_memory()
    before = count_resident_pages()
    block = libc.malloc(BLOCK_BYTES)
    ctypes.memset(block, 1, BLOCK_BYTES)
    libc.free(block)
    return 4096 * (count_resident_pages() - before)


def held_after_a_scan(checkpoint: Path, output: Path) -> int:
    """As above, by a process that has scanned a checkpoint."""
    # with more workers the scan is theirs
    assert main(["scan", str(checkpoint), "--workers", "1", "--output", str(output)]) == 0
    return held_after_a_block_was_freed(keeps=False)


def count_resident_pages() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1])


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries have no such setting")
def test_what_is_freed_stays_for_the_next_tensor():
    held = {}
    for keeps in (False, True):
        # the setting is a process's, for good
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
            held[keeps] = pool.submit(held_after_a_block_was_freed, keeps).result(patience(30))
    assert held[False] < BLOCK_BYTES / 4
    assert held[True] > BLOCK_BYTES * 3 / 4


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries have no such setting")
def test_a_scan_keeps_what_it_frees_for_the_next_matrix(tmp_path):
    save_file({"w": torch.eye(8)}, tmp_path / "model.safetensors")
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        held = pool.submit(held_after_a_scan, tmp_path / "model.safetensors", tmp_path / "ranking.json").result(patience(60))
    assert held > BLOCK_BYTES / 2
