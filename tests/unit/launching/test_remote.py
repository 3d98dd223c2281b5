"""Hosts that are asked over ssh; the ssh here runs on this host what it would run on another."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from kappaspeech.launching import leftovers, remote
from kappaspeech.launching.remote import Answer, ask, end_leftovers, find_ports
from tests.patience import patience

SSH = """#!/bin/sh
while [ "$1" != down ] && [ "$1" != slow ] && [ "${1#host}" = "$1" ]; do shift; done
[ "$1" = down ] && { echo "first line" >&2; echo "ssh: connect to host down: No route to host" >&2; exit 255; }
[ "$1" = slow ] && exec sleep 60
[ "$1" = host-greets ] && printf 'Gr\\374\\337e vom Cluster\\n'
[ "$1" = host-chats ] && { echo "This account is not available"; exit 0; }
shift
exec sh -c "$*"
"""


@pytest.fixture(autouse=True)
def ssh(tmp_path, monkeypatch):
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/ssh").write_text(SSH)
    (tmp_path / "bin/ssh").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")


def test_words_reach_a_host_as_they_are_and_answers_come_in_the_hosts_order():
    words = [sys.executable, "-c", "import sys; print(sys.argv[1:], sys.stdin.read())", "two words", "$HOME;'"]
    answers = ask(["host2", "down", "host1"], words, ssh_options=["-p", "22"], source="from here")
    said = f"{['two words', chr(36) + 'HOME;' + chr(39)]} from here"
    assert answers == [
        Answer("host2", said, None),
        Answer("down", "", "ssh: connect to host down: No route to host"),
        Answer("host1", said, None),
    ]


def test_a_host_that_does_not_answer_is_waited_for_so_long_and_no_longer(monkeypatch):
    monkeypatch.setattr(remote, "_TIMEOUT_SECONDS", 0.5)
    slow, other = ask(["slow", "down"], ["true"], ssh_options=[])
    assert slow.problem == "no answer in 0 s"
    assert "No route" in str(other.problem)


def test_a_failure_without_a_word_and_a_missing_ssh_are_told(monkeypatch):
    assert ask(["host1"], ["false"], ssh_options=[])[0].problem == "ssh ended with 1"
    monkeypatch.setenv("PATH", "")
    assert str(ask(["host1"], ["true"], ssh_options=[])[0].problem).startswith("ssh can't be started: ")


def test_a_port_that_a_host_tells_is_free():
    (answer,) = find_ports(["host1"], ssh_options=[])
    assert answer.problem is None
    with socket.socket() as probe:
        probe.bind(("", int(answer.text)))


def test_what_a_hosts_shell_prints_at_its_start_is_no_part_of_the_answer():
    (answer,) = find_ports(["host-greets"], ssh_options=[])
    assert (answer.problem, answer.text.isdecimal()) == (None, True)


def test_a_host_that_tells_no_port_is_one_with_a_problem():
    (answer,) = find_ports(["host-chats"], ssh_options=[])
    assert (answer.text, answer.problem) == ("", "asked for a free port it says 'This account is not available'")


@pytest.mark.parametrize("has_descriptors", [True, False])
def test_what_a_start_left_on_a_host_is_ended_and_counted(monkeypatch, has_descriptors):
    if not has_descriptors:
        # as on Linux 4.18, or by a Python that was built for one; the other host's Python is another process
        copy = Path(leftovers.__file__).read_text(encoding="utf-8").replace("import sys", "import sys\ndel os.pidfd_open", 1)
        monkeypatch.setattr(remote.Path, "read_text", lambda _path, **_options: copy)
    mark = f"test-{os.getpid()}"
    left = subprocess.Popen(["sleep", "60"], env={**os.environ, leftovers.VARIABLE: mark})
    other = subprocess.Popen(["sleep", "60"], env={**os.environ, leftovers.VARIABLE: f"{mark}-other"})
    try:
        (answer,) = end_leftovers(["host1"], mark, ssh_options=[])
        assert (answer.text, answer.problem) == ("1", None)
        assert left.wait(patience(5)) == -9
        assert other.poll() is None
    finally:
        for process in (left, other):
            process.kill()
            process.wait()
