from __future__ import annotations

import os
import subprocess
import sys

import pytest

from kappaspeech.processes import read_stat


def test_a_process_is_told_by_its_state_parent_and_start_whatever_it_is_called(tmp_path):
    program = tmp_path / "a) Z 1 ("
    program.symlink_to("/bin/sleep")
    process = subprocess.Popen([program, "60"])
    try:
        own, found = read_stat(os.getpid()), read_stat(process.pid)
        assert found.parent == os.getpid()
        assert found.started >= own.started > 0
        assert found.state in "RSD"
    finally:
        process.kill()
        process.wait()


def test_a_process_that_is_no_more_is_an_error_of_the_system():
    done = subprocess.Popen([sys.executable, "-c", ""])
    done.wait()
    with pytest.raises(OSError, match=r"\d"):
        read_stat(done.pid)
