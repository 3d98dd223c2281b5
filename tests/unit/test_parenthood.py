"""Helper processes don't outlive the process that started them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile

from tests.patience import patience

REPOSITORY = Path(__file__).parents[2]


def children_of(pid: int) -> set[int]:
    found = set()
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[1]) == pid:
            found.add(int(path.parent.name))
    return found


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def wait_until(is_so, *, seconds: float = 60.0) -> None:
    deadline = time.monotonic() + patience(seconds)
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def start(words: list[str], **more) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(REPOSITORY), str(REPOSITORY / "pipeline")])}
    return subprocess.Popen(words, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, **more)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_the_workers_of_a_killed_pack_end(tmp_path, number):
    rows = []
    for index in range(400):
        soundfile.write(tmp_path / f"{index}.wav", np.random.default_rng(index).normal(0, 0.1, 160_000), 16_000)
        rows.append({"audio_filepath": f"{index}.wav", "text": "word", "lang": "en"})
    manifest = tmp_path / "m.jsonl"
    manifest.write_text("".join(json.dumps(row) + "\n" for row in rows))
    process = start([sys.executable, "-m", "kappaspeech", "pack", str(manifest), str(tmp_path / "out"), "--workers", "2"])
    try:
        wait_until(lambda: len(children_of(process.pid)) >= 2 or process.poll() is not None)
        assert process.poll() is None, "it was over too soon to be killed"
        workers = children_of(process.pid)
        process.send_signal(number)
        process.wait(timeout=patience(30))
        wait_until(lambda: not any(map(is_alive, workers)), seconds=20)
    finally:
        process.kill()


@pytest.mark.parametrize("kind", ["spawn", "fork"])
def test_an_idle_and_a_busy_worker_end_with_their_parent(kind):
    program = f"""
import multiprocessing, os, sys, time
from concurrent.futures import ProcessPoolExecutor
from kappaspeech.parenthood import end_with_parent
if __name__ == "__main__":
    context = multiprocessing.get_context("{kind}")
    pool = ProcessPoolExecutor(2, mp_context=context, initializer=end_with_parent, initargs=(os.getpid(),))
    busy = pool.submit(time.sleep, 600)
    print(*[pool.submit(os.getpid).result(), *pool._processes], flush=True)
    os.kill(os.getpid(), 9)
"""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(REPOSITORY), str(REPOSITORY / "pipeline")])}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=False)
    workers = [int(word) for word in done.stdout.split()]
    assert len(workers) >= 3
    wait_until(lambda: not any(map(is_alive, workers)), seconds=20)


def test_a_program_that_is_a_helper_ends_with_the_one_that_started_it():
    helper = "import kappaspeech.parenthood as p, time; p.heed_parent(); print('up', flush=True); time.sleep(600)"
    program = f"""
import os, subprocess, sys
from kappaspeech.parenthood import as_helper
child = subprocess.Popen([sys.executable, "-c", {helper!r}], env={{**os.environ, **as_helper()}}, stdout=subprocess.PIPE)
child.stdout.readline()
print(child.pid, flush=True)
os.kill(os.getpid(), 9)
"""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(REPOSITORY), str(REPOSITORY / "pipeline")])}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=False)
    pid = int(done.stdout)
    wait_until(lambda: not is_alive(pid), seconds=20)


def test_a_program_that_is_nobodys_helper_stays(monkeypatch):
    from kappaspeech import parenthood

    monkeypatch.delenv(parenthood.PARENT_VARIABLE, raising=False)
    parenthood.heed_parent()
    monkeypatch.setenv(parenthood.PARENT_VARIABLE, str(os.getppid()))
    parenthood.heed_parent()
    # what it starts isn't taken for a helper of its parent
    assert parenthood.PARENT_VARIABLE not in os.environ
