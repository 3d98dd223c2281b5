"""Questions to hosts over ssh, all at once, each with a limit of its own."""

from __future__ import annotations

import shlex
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from kappaspeech.launching import leftovers

_OPTIONS = ("-o", "BatchMode=yes", "-o", "ConnectTimeout=5", "-o", "ServerAliveInterval=5", "-o", "ServerAliveCountMax=2")
_TIMEOUT_SECONDS = 30.0
_FREE_PORT = "import socket; s = socket.socket(); s.bind(('', 0)); print(s.getsockname()[1])"


@dataclass(frozen=True)
class Answer:
    """A host's answer: `text`, or the `problem` that prevented it."""

    host: str
    text: str
    problem: str | None


def ask(hosts: Sequence[str], words: Sequence[str], *, ssh_options: Sequence[str], source: str = "") -> list[Answer]:
    """Run `words` on every host, with `source` as their standard input; one answer a host, in order: the last line it said."""

    def one(host: str) -> Answer:
        command = ["ssh", *ssh_options, *_OPTIONS, host, shlex.join(words)]
        try:
            done = subprocess.run(
                command,
                input=source,
                capture_output=True,
                encoding="utf-8",
                errors="replace",  # a host's greeting may be in any encoding
                timeout=_TIMEOUT_SECONDS,
                check=False,
            )
        except subprocess.TimeoutExpired:
            return Answer(host, "", f"no answer in {_TIMEOUT_SECONDS:.0f} s")
        except OSError as error:
            return Answer(host, "", f"ssh can't be started: {error}")
        if done.returncode:
            return Answer(host, "", (done.stderr.strip().splitlines() or [f"ssh ended with {done.returncode}"])[-1])
        # a start-up file of the shell there may print something first
        return Answer(host, (done.stdout.strip().splitlines() or [""])[-1], None)

    with ThreadPoolExecutor(max_workers=len(hosts)) as pool:
        return list(pool.map(one, hosts))


def find_ports(hosts: Sequence[str], *, ssh_options: Sequence[str]) -> list[Answer]:
    """A free port of each host; one that doesn't answer, lacks this Python, or says something else has a `problem` instead."""
    answers = ask(hosts, [sys.executable, "-c", _FREE_PORT], ssh_options=ssh_options)
    odd = {answer.host for answer in answers if answer.problem is None and not answer.text.isdecimal()}
    return [
        Answer(answer.host, "", f"asked for a free port it says {answer.text!r:.60}") if answer.host in odd else answer
        for answer in answers
    ]


def end_leftovers(hosts: Sequence[str], mark: str, *, ssh_options: Sequence[str]) -> list[Answer]:
    """Kill the processes that the start `mark` left on each host; the answer is their number."""
    source = Path(leftovers.__file__).read_text(encoding="utf-8")
    return ask(hosts, [sys.executable, "-", mark], ssh_options=ssh_options, source=source)
