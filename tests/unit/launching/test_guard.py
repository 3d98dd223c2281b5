"""A supervisor that is killed takes its start with it, on this host and on others. Real processes; a script stands for ssh."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from kappaspeech.launching import leftovers
from kappaspeech.launching.guard import guarded
from tests.patience import patience

REPOSITORY = Path(__file__).parents[3]


def wait_until(is_so) -> None:
    deadline = time.monotonic() + patience(20)
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def supervise(folder: Path, mark: str, **start: object) -> subprocess.Popen[bytes]:
    """A supervisor of a launcher that leaves a rank in a session of its own, as deepspeed's do."""
    script = f"setsid sleep 600 & echo $! > {folder}/rank; wait"
    program = f"""
from pathlib import Path
from kappaspeech.launching import supervisor
from kappaspeech.launching.command_lines import CommandLine
start = supervisor.Start(CommandLine(("bash", "-c", {script!r})), mark={mark!r}, **{start!r})
supervisor.prepare_start = lambda *_, **__: start
supervisor.supervise(supervisor.Request(("c.yaml",), Path({str(folder)!r}), num_ranks=1))
"""
    path = os.pathsep.join([str(folder / "bin"), os.environ["PATH"]])
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY / "pipeline"), "PATH": path}
    process = subprocess.Popen([sys.executable, "-c", program], env=environment, stderr=subprocess.DEVNULL)
    wait_until(lambda: (folder / "rank").exists() and (folder / "rank").read_text().strip())
    return process


def test_a_killed_supervisor_takes_launcher_and_ranks_with_it(tmp_path):
    other = subprocess.Popen(["sleep", "60"], env={**os.environ, leftovers.VARIABLE: "another"})
    process = supervise(tmp_path, f"guarded-{os.getpid()}")
    try:
        assert int((tmp_path / "rank").read_text()) in leftovers.find(f"guarded-{os.getpid()}")
        process.send_signal(signal.SIGKILL)
        process.wait(timeout=patience(10))
        wait_until(lambda: not leftovers.find(f"guarded-{os.getpid()}"))
        assert other.poll() is None
    finally:
        process.kill()
        other.kill()
        other.wait()


def test_a_killed_supervisor_takes_ranks_of_other_hosts_with_it(tmp_path):
    (tmp_path / "bin").mkdir()
    ssh = tmp_path / "bin" / "ssh"
    ssh.write_text(f'#!/bin/sh\necho "$@" > {tmp_path}/asked.new\nmv {tmp_path}/asked.new {tmp_path}/asked\necho 0\n')
    ssh.chmod(0o755)
    process = supervise(tmp_path, f"far-{os.getpid()}", ssh_hosts=("gpu01",))
    process.send_signal(signal.SIGKILL)
    process.wait(timeout=patience(10))
    wait_until(lambda: (tmp_path / "asked").exists())
    assert (tmp_path / "asked").read_text().split()[-4:] == ["gpu01", sys.executable, "-", f"far-{os.getpid()}"]


def test_a_start_that_ends_has_no_guard_any_more():
    mark = f"ended-{os.getpid()}"
    sleeper = subprocess.Popen(["sleep", "60"], env={**os.environ, leftovers.VARIABLE: mark})
    with guarded(mark, hosts=(), ssh_options=()):
        wait_until(lambda: find_guards(mark))
    assert not find_guards(mark)
    assert sleeper.poll() is None
    sleeper.kill()
    sleeper.wait()


def find_guards(mark: str) -> list[str]:
    return [pid for pid in os.listdir("/proc") if pid.isdigit() and mark.encode() in words_of(pid)]


def words_of(pid: str) -> list[bytes]:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return []
