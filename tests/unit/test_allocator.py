from __future__ import annotations

import ctypes
import multiprocessing
import platform
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from kappaspeech import allocator
from kappaspeech.allocator import expand_segments, keep_few_primitives, keep_freed_memory
from kappaspeech.commands import main
from tests.conftest import clean_environment
from tests.patience import patience

BLOCK_BYTES = 64 << 20
ROOT = Path(__file__).parents[2]


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


@pytest.mark.parametrize(
    ("torch_version", "given", "expected"),
    [
        ("2.13.0+cu130", {}, "expandable_segments:True"),
        # as the index has it
        ("2.6.0", {}, "expandable_segments:True"),
        ("2.13.0", {"PYTORCH_CUDA_ALLOC_CONF": "max_split_size_mb:128"}, "max_split_size_mb:128"),
        ("2.13.0", {"PYTORCH_ALLOC_CONF": ""}, None),
        ("2.13.0+cpu", {}, None),
        ("2.13.0+rocm7.0", {}, None),
    ],
)
def test_segments_grow_where_torch_has_it_and_the_user_says_nothing_else(monkeypatch, torch_version, given, expected):
    monkeypatch.setattr(allocator, "find_version", lambda _package: torch_version)
    variables = dict(given)
    expand_segments(variables)
    assert variables.get("PYTORCH_CUDA_ALLOC_CONF") == expected
    assert variables.keys() - {"PYTORCH_CUDA_ALLOC_CONF"} == given.keys() - {"PYTORCH_CUDA_ALLOC_CONF"}


@pytest.mark.parametrize("name", ["expand_segments", "keep_few_primitives"])
def test_a_training_sets_it_before_torch_is_loaded(name):
    code = (
        "import importlib, os, sys\n"
        "from kappaspeech import allocator\n"
        "train = importlib.import_module('kappaspeech.commands.train')\n"
        "def show(variables):\n"
        "    print(variables is os.environ, 'torch' in sys.modules)\n"
        "    sys.exit(0)\n"
        f"allocator.{name} = show\n"
        "train._train_here(None)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env=clean_environment(), capture_output=True, text=True, timeout=patience(30), check=False
    )
    assert (done.returncode, done.stdout) == (0, "True False\n"), done.stderr


def test_how_many_products_are_kept_is_the_users_if_they_say_so():
    variables = {"LRU_CACHE_CAPACITY": "1000"}
    keep_few_primitives(variables)
    assert variables == {"LRU_CACHE_CAPACITY": "1000", "ONEDNN_PRIMITIVE_CACHE_CAPACITY": "64"}


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallinfo2"), reason="glibc counts the bytes in use since 2.33")
def test_batches_of_new_lengths_take_no_more_and_more_memory():
    """A kept product has up to half a megabyte, by processor, and 1,024 were kept."""
    code = (
        "import os, sys\n"
        "from kappaspeech.allocator import keep_few_primitives\n"
        "if sys.argv[1] == 'few': keep_few_primitives(os.environ)\n"
        "import torch\n"
        "from tests.unit.test_allocator import bytes_in_use\n"
        "rows, weight = (torch.ones(length, 64, dtype=torch.bfloat16) for length in (600, 64))\n"
        "def multiply(lengths):\n"
        "    for length in lengths: rows[:length] @ weight\n"
        "    return bytes_in_use()\n"
        "print(-multiply(range(200, 300)) + multiply(range(300, 500)))\n"
    )
    # a command that ran in this process before has set them for it
    environment = {name: value for name, value in clean_environment().items() if name not in allocator._PRIMITIVE_CACHES}
    grown = {}
    for kept in ("all", "few"):
        command = [sys.executable, "-c", code, kept]
        done = subprocess.run(
            command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=patience(60), check=False
        )
        assert done.returncode == 0, done.stderr
        grown[kept] = int(done.stdout)
    if grown["all"] < 1e6:
        pytest.skip("oneDNN keeps next to nothing of a product on this processor")
    assert grown["few"] < grown["all"] / 20


class Mallinfo2(ctypes.Structure):
    """glibc's malloc.h: ten numbers, the eighth of them the bytes in use."""

    _fields_ = tuple((name, ctypes.c_size_t) for name in (*"1234567", "in_use", "free", "top"))


def bytes_in_use() -> int:
    """Bytes of the heap that are in use, without those that are free in it."""
    mallinfo2 = ctypes.CDLL(None).mallinfo2
    mallinfo2.restype = Mallinfo2
    return int(mallinfo2().in_use)
