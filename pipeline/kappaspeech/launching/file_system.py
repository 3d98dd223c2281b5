"""A check whether a file system still answers, without waiting: a process stuck in a stalled one may not even be killable."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

_WRITE = (
    "import os, sys, tempfile; os.makedirs(sys.argv[1], exist_ok=True); "
    "file = tempfile.NamedTemporaryFile(dir=sys.argv[1]); file.write(b'x'); file.flush(); os.fsync(file.fileno())"
)
_INTERVAL_SECONDS = 10.0
_POLL_SECONDS = 0.2


class FolderWatch:
    """A watch that looks at a folder's files in a thread, and writes small ones to it in processes; the caller never waits.

    `is_over` is the last value that `look` returned. A context manager.
    """

    def __init__(self, folder: Path, *, timeout_seconds: float, look: Callable[[], bool]) -> None:
        self.is_over = False
        self._folder = folder
        self._timeout_seconds = timeout_seconds
        self._look = look
        self._seen = self._written = time.monotonic()
        self._writer: subprocess.Popen[str] | None = None
        self._closed = threading.Event()

    def __enter__(self) -> FolderWatch:
        threading.Thread(target=self._run, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._closed.set()
        if self._writer is not None:
            self._writer.kill()
            self._writer.poll()

    def problem(self) -> str | None:
        """The reason why the folder can't be used, or None; returns at once."""
        now = time.monotonic()
        if self._writer is None and now - self._written > _INTERVAL_SECONDS:
            self._writer, self._written = start_writer(self._folder), now
        if self._writer is not None and self._writer.poll() is not None:
            self._writer, self._written = None, now
        waited = max(now - self._seen, now - self._written if self._writer is not None else 0.0)
        return describe_stall(self._folder, waited) if waited > self._timeout_seconds else None

    def _run(self) -> None:
        while not self._closed.wait(_POLL_SECONDS):
            # a stale handle of a network file system, say: the next look tells whether it has recovered
            with contextlib.suppress(OSError):
                self.is_over = self._look()
                self._seen = time.monotonic()


def start_writer(folder: Path) -> subprocess.Popen[str]:
    """A process that makes `folder` and writes a small file to it, which it removes again."""
    # a process that hangs must not keep the caller's standard output open
    return subprocess.Popen(
        [sys.executable, "-c", _WRITE, str(folder)], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )


def find_problem(folder: Path, *, timeout_seconds: float) -> str | None:
    """The reason why `folder` can't be written now, or None; returns within `timeout_seconds`."""
    writer = start_writer(folder)
    try:
        _, said = writer.communicate(timeout=timeout_seconds)
    except subprocess.TimeoutExpired:
        writer.kill()
        return describe_stall(folder, timeout_seconds)
    reason = said.strip().rpartition("\n")[2]
    return f"{folder} can't be written on {socket.gethostname()}: {reason}" if writer.returncode else None


def describe_stall(folder: Path, seconds: float) -> str:
    """The message for a file system that hasn't answered for `seconds`."""
    return (
        f"the file system of {folder} hasn't answered on {socket.gethostname()} for {seconds:.0f} s. What was saved is whole; "
        "the same command continues once it answers"
    )
