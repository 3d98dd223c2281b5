"""A folder that doesn't answer is told without waiting for it."""

from __future__ import annotations

import threading
import time

from kappaspeech.launching import file_system
from kappaspeech.launching.file_system import FolderWatch, find_problem
from tests.patience import patience


def test_a_folder_that_takes_files_has_no_problem_and_is_left_empty(tmp_path):
    assert find_problem(tmp_path / "new/run", timeout_seconds=patience(30)) is None
    assert list((tmp_path / "new/run").iterdir()) == []


def test_a_folder_that_cannot_be_made_is_told_with_the_reason(tmp_path):
    (tmp_path / "file").touch()
    problem = find_problem(tmp_path / "file/run", timeout_seconds=patience(30))
    assert problem is not None
    assert "can't be written on" in problem
    assert "NotADirectoryError" in problem


def test_a_read_that_hangs_is_a_stall_and_keeps_nobody_waiting(tmp_path):
    hang = threading.Event()
    with FolderWatch(tmp_path, timeout_seconds=0.5, look=lambda: hang.wait(patience(30))) as watch:
        began = time.monotonic()
        assert watch.problem() is None
        while watch.problem() is None:
            assert time.monotonic() - began < patience(10)
            time.sleep(0.05)
        assert "hasn't answered" in str(watch.problem())
    hang.set()


def test_a_write_that_hangs_is_a_stall(tmp_path, monkeypatch):
    monkeypatch.setattr(file_system, "_INTERVAL_SECONDS", 0.1)
    monkeypatch.setattr(file_system, "_WRITE", f"import time; time.sleep({patience(30)})")
    with FolderWatch(tmp_path, timeout_seconds=0.5, look=lambda: False) as watch:
        began = time.monotonic()
        while watch.problem() is None:
            assert time.monotonic() - began < patience(10)
            time.sleep(0.05)


def test_a_look_that_fails_once_is_taken_again(tmp_path):
    looks = []

    def look():
        looks.append(1)
        if len(looks) == 1:
            raise OSError(116, "Stale file handle")
        return True

    with FolderWatch(tmp_path, timeout_seconds=patience(30), look=look) as watch:
        deadline = time.monotonic() + patience(10)
        while not watch.is_over:
            assert time.monotonic() < deadline
            time.sleep(0.05)


def test_what_was_looked_for_is_seen(tmp_path):
    with FolderWatch(tmp_path, timeout_seconds=patience(30), look=lambda: (tmp_path / "over").exists()) as watch:
        assert not watch.is_over
        (tmp_path / "over").touch()
        deadline = time.monotonic() + patience(10)
        while not watch.is_over:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        assert watch.problem() is None
