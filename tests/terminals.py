"""Commands on a terminal of a given width, and without one."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from collections.abc import Sequence

from tests.conftest import clean_environment
from tests.patience import patience

_COLOUR = re.compile(r"\x1b\[[\d;]*(?:3[0-8]|4[0-8]|9[0-7]|10[0-7])[\d;]*m")
_CODE = re.compile(r"\x1b\[[\d;?]*[A-Za-z]")


def run_on_terminal(words: Sequence[str], *, columns: int) -> tuple[str, int]:
    """Run a command on a terminal of so many columns with NO_COLOR; return what it shows, both streams, and its exit code.

    Asserts that it has no colour; codes that make letters bold or move a bar are taken away.
    """
    leader, follower = pty.openpty()
    fcntl.ioctl(follower, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    environment = clean_environment(TERM="xterm", NO_COLOR="1", OMP_NUM_THREADS="1", DS_ACCELERATOR="cpu")
    for name in ("COLUMNS", "LINES", "FORCE_COLOR"):
        environment.pop(name, None)
    command = [sys.executable, "-m", "kappaspeech", *words]
    process = subprocess.Popen(command, stdin=follower, stdout=follower, stderr=follower, env=environment)
    os.close(follower)
    seen = b""
    # Linux says so if the other end is closed
    with contextlib.suppress(OSError):
        while block := os.read(leader, 1 << 16):
            seen += block
    os.close(leader)
    code = process.wait(timeout=patience(120))
    text = seen.decode(errors="replace")
    assert not _COLOUR.search(text), text
    return _CODE.sub("", text).replace("\r\n", "\n"), code


def run_in_pipes(words: Sequence[str]) -> subprocess.CompletedProcess[str]:
    """The same command without a terminal. Asserts that nothing it prints is meant for one.

    COLUMNS, which a shell may export, is that of the shell's terminal, and says nothing of a pipe.
    """
    environment = clean_environment(OMP_NUM_THREADS="1", DS_ACCELERATOR="cpu", COLUMNS="40")
    done = subprocess.run(
        [sys.executable, "-m", "kappaspeech", *words],
        capture_output=True,
        text=True,
        env=environment,
        timeout=patience(120),
        check=False,
    )
    assert "\x1b" not in done.stdout + done.stderr
    assert "\r" not in done.stdout + done.stderr
    return done
