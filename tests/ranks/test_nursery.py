"""Processes forked by the nursery are like those that `python -m kappaspeech` starts, and the nursery's own end is told."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from tests.conftest import clean_environment
from tests.nursery import Nursery
from tests.patience import patience

FACTS = """
import atexit, json, os, signal, sys, threading
import __main__
atexit.register(print, "at exit")
print(json.dumps({
    "argv": sys.argv, "main": sorted(vars(__main__)) == sorted(globals()), "cwd": os.getcwd(), "input": sys.stdin.read(),
    "files": sorted(int(name) for name in os.listdir("/proc/self/fd") if os.path.exists(f"/proc/self/fd/{name}")),
    "encoding": [sys.stdout.encoding, sys.stdout.errors, sys.stdout.line_buffering, sys.stderr.errors],
    "handlers": [str(signal.getsignal(getattr(signal, name))) for name in ("SIGINT", "SIGTERM", "SIGPIPE", "SIGCHLD")],
    "threads": threading.active_count(), "umask": os.umask(0), "environment": dict(os.environ),
}))
print("to errors", file=sys.stderr)
"""


def really(*words: str, environment: dict[str, str] | None = None, **options) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *words],
        env=environment or clean_environment(OMP_NUM_THREADS="1", DS_ACCELERATOR="cpu", TORCH_CPP_LOG_LEVEL="ERROR"),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=patience(60),
        **options,
    )


def test_a_process_finds_what_a_real_one_finds(nursery, tmp_path):
    forked = nursery.run("a word", code=FACTS, cwd=tmp_path)
    real = really("-c", FACTS, "a word", cwd=tmp_path, environment=nursery.variables({}))
    assert (forked.returncode, forked.stderr) == (real.returncode, real.stderr)
    assert forked.stdout.splitlines()[1:] == real.stdout.splitlines()[1:] == ["at exit"]
    found, expected = (json.loads(done.stdout.splitlines()[0]) for done in (forked, real))
    assert found == expected


@pytest.mark.parametrize(
    ("end", "code"),
    [
        ("sys.exit(3)", 3),
        ("sys.exit()", 0),
        ("sys.exit('a last word')", 1),
        ("raise ValueError('fell over')", 1),
        ("os._exit(7)", 7),
        ("os.kill(os.getpid(), signal.SIGTERM)", -signal.SIGTERM),
        ("os.kill(os.getpid(), signal.SIGINT)", -signal.SIGINT),
        ("threading.Thread(target=lambda: (time.sleep(0.2), print('late'))).start()", 0),
    ],
)
def test_an_end_is_that_of_a_real_process(nursery, end, code):
    script = f"import os, signal, sys, threading, time\nprint('buffered')\n{end}"
    forked, real = nursery.run(code=script), really("-c", script)
    assert forked.returncode == real.returncode == code
    assert forked.stdout == real.stdout
    assert forked.stderr.splitlines()[-1:] == real.stderr.splitlines()[-1:]


def test_ranks_are_numbered_run_at_once_and_the_first_code_that_is_not_0_counts(nursery):
    script = """
import os, sys, torch.distributed as dist
dist.init_process_group("gloo")
dist.barrier()
print(f'{os.environ["RANK"]} {os.environ["LOCAL_RANK"]} {dist.get_world_size()}', flush=True)
dist.destroy_process_group()
sys.exit(4 * (os.environ["RANK"] == "2"))
"""
    done = nursery.run(code=script, ranks=3)
    assert sorted(done.stdout.splitlines()) == ["0 0 3", "1 1 3", "2 2 3"]
    assert done.returncode == 4


def test_a_time_out_is_raised_with_what_was_said_and_leaves_no_process(nursery):
    with pytest.raises(subprocess.TimeoutExpired) as raised:
        nursery.run(code="import os, time\nprint(os.getpid(), flush=True)\ntime.sleep(600)", timeout=1)
    with pytest.raises(ProcessLookupError):
        os.kill(int(raised.value.output), 0)


def test_a_variable_that_comes_too_late_is_refused(nursery):
    with pytest.raises(AssertionError, match="ONEDNN_MAX_CPU_ISA would change nothing here"):
        nursery.run("--version", environment={"ONEDNN_MAX_CPU_ISA": "SSE41"})


def test_what_a_command_in_the_tests_process_has_set_for_libraries_is_left_out(nursery, monkeypatch):
    for name in ("MKL_NUM_THREADS", "ANOTHER"):
        monkeypatch.setenv(name, "3")
    done = nursery.run(code="import os; print(os.environ.get('MKL_NUM_THREADS'), os.environ['ANOTHER'])")
    assert done.stdout == "None 3\n"


def test_its_own_end_is_told_and_is_the_end_of_all_that_it_started(tmp_path):
    with Nursery(preloaded=()) as nursery:
        (pid,) = nursery.start(code="import time\ntime.sleep(600)", output=tmp_path / "output")
    deadline = time.monotonic() + patience(10)
    while os.path.exists(f"/proc/{pid}/exe"):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    with Nursery(preloaded=()) as nursery:
        nursery.start(code="", output=tmp_path / "output")
        nursery._process.kill()
        with pytest.raises(RuntimeError, match="the nursery has ended with -9"):
            nursery.start(code="", output=tmp_path / "output")
