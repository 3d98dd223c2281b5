from __future__ import annotations

import os

import pytest

from kappaspeech.outside import read_regular
from kappaspeech.speech.regular_files import is_regular


def test_a_file_is_read_whole(tmp_path):
    (tmp_path / "a").write_bytes(b"\0x" * 50_000)
    (tmp_path / "link").symlink_to("a")
    assert is_regular(tmp_path / "link")
    assert read_regular(tmp_path / "link") == b"\0x" * 50_000


def test_a_pipe_that_nobody_writes_to_and_a_device_that_never_ends_are_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "zero").symlink_to("/dev/zero")
    for name in ("pipe", "zero"):
        assert not is_regular(tmp_path / name)
        with pytest.raises(OSError, match="no file with an end"):
            read_regular(tmp_path / name)


@pytest.mark.parametrize("name", ["missing", "a" * 5000, "a\0b", "."])
def test_what_can_be_no_file_is_none(tmp_path, name):
    assert not is_regular(tmp_path / name)
