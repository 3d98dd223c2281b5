"""A run folder has one holder at a time: real processes, of which some are given another host's name."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from kappaspeech.errors import InputError, TrainingError
from kappaspeech.runs import lease as leases
from kappaspeech.runs.contents import LEASE_FILE
from kappaspeech.runs.lease import Lease, free, launch_of, make_start_id
from tests.patience import patience

HOLD = """
import socket, sys, time
name = sys.argv[2]
if name: socket.gethostname = lambda: name
from kappaspeech.runs import lease
lease.RENEWAL_SECONDS = 0.1
held = lease.Lease(lease.Path(sys.argv[1]), lease.make_start_id())
held.acquire()
print("held", flush=True)
for line in sys.stdin:
    try: held.check(); print("still", flush=True)
    except lease.TrainingError as error: print(error, flush=True)
held.release()
"""


@contextmanager
def holder(folder: Path, *, host: str = "") -> Iterator[subprocess.Popen[str]]:
    """A process that holds `folder` until its standard input ends."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder), host], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    try:
        yield process
    finally:
        process.kill()
        with process:
            pass  # its pipes are closed, and it is waited for


def test_a_second_start_on_the_host_ends_at_once_with_the_firsts_process_and_age(tmp_path):
    with holder(tmp_path) as first:
        began = time.monotonic()
        with pytest.raises(InputError, match=rf"for \d+ seconds by process {first.pid} on .*give another run_dir"):
            Lease(tmp_path, make_start_id()).acquire()
        assert time.monotonic() - began < 1
        assert json.loads((tmp_path / LEASE_FILE).read_text())["pid"] == first.pid


def test_a_killed_starts_lease_is_taken_over_at_once_on_its_host(tmp_path):
    with holder(tmp_path) as first:
        first.kill()
        first.wait()
        began = time.monotonic()
        second = Lease(tmp_path, make_start_id())
        second.acquire()
        assert time.monotonic() - began < 1
        second.release()
    assert list(tmp_path.iterdir()) == []


def test_a_stopped_process_still_holds_its_folder(tmp_path):
    with holder(tmp_path) as first:
        os.kill(first.pid, signal.SIGSTOP)
        deadline = time.monotonic() + patience(10)
        while ") T " not in Path(f"/proc/{first.pid}/stat").read_text():
            assert time.monotonic() < deadline
            time.sleep(0.01)
        with pytest.raises(InputError, match=r"which is stopped \(SIGSTOP\)"):
            free(tmp_path)


def test_a_start_on_another_host_is_refused_once_the_lease_is_renewed(tmp_path):
    with holder(tmp_path, host="the-other-host") as first:
        began = time.monotonic()
        with pytest.raises(InputError, match=f"process {first.pid} on the-other-host"):
            free(tmp_path)
        assert time.monotonic() - began < patience(2)


def test_a_dead_hosts_lease_expires_and_is_waited_for_no_longer(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(leases, "EXPIRY_SECONDS", 1.0)
    monkeypatch.setattr(leases, "RENEWAL_SECONDS", 0.2)
    with holder(tmp_path, host="the-other-host") as first:
        first.kill()
        first.wait()
        began = time.monotonic()
        free(tmp_path)
        assert 1 <= time.monotonic() - began < 1 + patience(1)
    assert f"was held by process {first.pid} on the-other-host" in capsys.readouterr().err


def test_a_holder_that_was_held_up_until_it_seemed_dead_writes_no_more(tmp_path, monkeypatch):
    monkeypatch.setattr(leases, "EXPIRY_SECONDS", 0.5)
    with holder(tmp_path, host="the-other-host") as first:
        assert first.stdin is not None
        assert first.stdout is not None
        os.kill(first.pid, signal.SIGSTOP)
        second = Lease(tmp_path, make_start_id())
        second.acquire()
        os.kill(first.pid, signal.SIGCONT)
        deadline = time.monotonic() + patience(10)
        said = "still"
        while said == "still" and time.monotonic() < deadline:
            time.sleep(0.1)
            print(file=first.stdin, flush=True)
            said = first.stdout.readline().strip()
        assert f"was taken over by process {os.getpid()} on" in said
        # and its end leaves the second one's lease alone
        first.stdin.close()
        first.wait()
        second.check()
        assert json.loads((tmp_path / LEASE_FILE).read_text())["id"] == second.start_id
        second.release()


def test_of_many_starts_at_once_one_gets_the_folder(tmp_path):
    script = HOLD.replace('print("held", flush=True)', 'print("held", flush=True); time.sleep(1)')
    words = [sys.executable, "-c", script, str(tmp_path), ""]
    starts = [
        subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(6)
    ]
    said = [process.communicate(timeout=patience(30)) for process in starts]
    # one that began after the first had ended may have it too, but never while it is held
    assert sum("held" in out for out, _ in said) + sum("InputError" in err for _, err in said) == len(starts)
    assert any("InputError" in err for _, err in said)


def test_a_lease_that_says_nothing_expires_too(tmp_path, monkeypatch):
    monkeypatch.setattr(leases, "EXPIRY_SECONDS", 0.3)
    for content in (b"", b"\xff{", b"[1]", b'{"id": 3}'):
        (tmp_path / LEASE_FILE).write_bytes(content)
        free(tmp_path)
        assert not (tmp_path / LEASE_FILE).exists()


def test_a_folder_made_for_a_start_that_wrote_nothing_goes_with_its_lease(tmp_path):
    for folder, stays in ((tmp_path / "new", False), (tmp_path / "old", True)):
        if stays:
            folder.mkdir()
        lease = Lease(folder, make_start_id())
        lease.acquire()
        lease.release()
        assert folder.exists() == stays


def test_a_run_dir_that_cannot_be_made_is_told(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"file/run can't be written on .* Give a run_dir that can"):
        Lease(tmp_path / "file" / "run", make_start_id()).acquire()


def test_a_lease_lost_by_a_foreign_hand_is_noticed_before_the_next_write(tmp_path, monkeypatch):
    monkeypatch.setattr(leases, "EXPIRY_SECONDS", 0.0)
    monkeypatch.setattr(leases, "RENEWAL_SECONDS", 60.0)
    lease = Lease(tmp_path, make_start_id())
    lease.acquire()
    record = json.loads((tmp_path / LEASE_FILE).read_text())
    (tmp_path / LEASE_FILE).write_text(json.dumps({**record, "id": "other/1"}))
    with pytest.raises(TrainingError, match="was taken over"):
        lease.check()
    lease.release()


def test_a_starts_id_tells_its_launch(monkeypatch):
    monkeypatch.delenv("KAPPASPEECH_LAUNCH", raising=False)
    assert launch_of(make_start_id()) == ""
    monkeypatch.setenv("KAPPASPEECH_LAUNCH", "20260101-000000-abcdef")
    assert launch_of(make_start_id()) == "20260101-000000-abcdef"
    assert launch_of(None) is None
