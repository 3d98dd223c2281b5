from __future__ import annotations

import os
import subprocess
import sys

import pytest

from kappaspeech import processors
from kappaspeech.processors import count_cores, share_cores
from tests.patience import patience


@pytest.mark.parametrize(
    ("limit", "cores"), [("max 100000", None), ("50000 100000", 1), ("100000 100000", 1), ("nonsense", None)]
)
def test_a_containers_limit_counts(tmp_path, limit, cores):
    path = tmp_path / "cpu.max"
    path.write_text(limit + "\n")
    assert count_cores(path) == (cores or len(os.sched_getaffinity(0)))


def test_without_a_control_group_the_affinity_counts(tmp_path):
    everywhere = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(everywhere)})
        assert count_cores(tmp_path / "missing") == 1
    finally:
        os.sched_setaffinity(0, everywhere)


def test_ranks_share_out_the_cores_and_each_has_one(monkeypatch):
    monkeypatch.setattr(processors, "count_cores", lambda: 20)
    assert [share_cores(number) for number in (1, 3, 8, 100)] == [20, 6, 2, 1]


@pytest.mark.parametrize("words", [("100000",), ("0",), ("auto",), ("gpu",), ("",), ()])
def test_the_share_is_printed_for_scripts_and_heeds_no_threads_of_another(words):
    environment = {**os.environ, "OMP_NUM_THREADS": "7"}
    command = [sys.executable, "-m", "kappaspeech.processors", *words]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=patience(60), check=True)
    assert (done.stdout, done.stderr) == (f"{count_cores() if words == ('0',) else 1}\n", "")


def test_glibc_can_be_asked_to_keep_memory():
    code = "from kappaspeech.allocator import keep_freed_memory; print(keep_freed_memory())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=patience(60), check=True)
    assert done.stdout.strip() == str((os.confstr("CS_GNU_LIBC_VERSION") or "").startswith("glibc"))
