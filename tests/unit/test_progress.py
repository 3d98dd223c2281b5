"""Progress as a person sees it, on a terminal and in a log."""

from __future__ import annotations

import os
import pty
import re
import subprocess
import sys

from kappaspeech.progress import ProgressBar, say_duration
from tests.patience import patience

CODE = """
from kappaspeech.progress import ProgressBar
import time
with ProgressBar("train", total=40, done=10, shown=True) as bar:
    for _ in range(30):
        time.sleep(0.01)
        bar.advance(detail="loss 1.234, 56 audio-s/s")
"""


def test_a_terminal_gets_a_bar_with_loss_rate_and_time_left():
    leader, follower = pty.openpty()
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "120"}
    process = subprocess.Popen([sys.executable, "-c", CODE], stderr=follower, stdout=follower, env=environment)
    os.close(follower)
    seen = b""
    while True:
        try:
            block = os.read(leader, 4096)
        except OSError:  # Linux says so if the other end is closed
            break
        if not block:
            break
        seen += block
    os.close(leader)
    assert process.wait(timeout=patience(60)) == 0
    text = re.sub(r"\x1b\[[\d;?]*[A-Za-z]", "", seen.decode())
    last = text.rstrip().splitlines()[-1]
    for part in ("train", "100%", "loss 1.234, 56 audio-s/s", "left"):
        assert part in last, text
    assert "25%" in text


def test_a_log_gets_a_line_at_the_start_and_at_the_end(capsys):
    with ProgressBar("train", total=4, done=2, shown=True) as bar:
        bar.advance(detail="loss 2.000")
        bar.advance(detail="loss 1.000")
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("train  50%")
    assert lines[-1].startswith("train 100% loss 1.000, ")
    assert len(lines) <= 3


def test_long_times_are_hours_and_minutes(capsys, monkeypatch):
    assert [say_duration(seconds) for seconds in (0.4, 99, 100, 3600, 110257)] == ["0 s", "99 s", "0:02 h", "1:00 h", "30:38 h"]
    clock = iter([0.0, 0.0, 100.0, 100.0, 100.0, 100.0])
    monkeypatch.setattr("kappaspeech.progress.time.monotonic", lambda: next(clock))
    with ProgressBar("train", total=1000, shown=True) as bar:
        bar.advance()
    assert "27:45 h left" in capsys.readouterr().err


def test_a_line_is_not_said_twice(capsys, monkeypatch):
    monkeypatch.setattr("kappaspeech.progress._LINE_INTERVAL_SECONDS", 0.0)
    with ProgressBar("train", total=2, shown=True) as bar:
        bar.advance()
        bar.advance()
    assert [line.split(",")[0] for line in capsys.readouterr().err.splitlines()] == ["train   0%", "train  50%", "train 100%"]


def test_other_ranks_say_nothing(capsys):
    with ProgressBar("train", total=4, shown=False) as bar:
        bar.advance(4)
    assert capsys.readouterr().err == ""
