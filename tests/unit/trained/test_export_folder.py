"""A folder that appears whole or not at all."""

from __future__ import annotations

import pytest

from kappaspeech.errors import InputError
from kappaspeech.trained.export_folder import write_folder


def test_a_folder_that_is_there_is_kept(tmp_path):
    with pytest.raises(InputError, match="exists already"):
        write_folder(tmp_path, lambda _: None, num_bytes=0)


def test_nothing_stays_of_one_that_failed(tmp_path):
    def fail(folder):
        (folder / "a").write_text("half")
        raise OSError(28, "No space left on device")

    with pytest.raises(InputError, match="Nothing of it was kept"):
        write_folder(tmp_path / "out", fail, num_bytes=0)
    assert list(tmp_path.iterdir()) == []


def test_too_little_room_is_told_before_anything_is_written(tmp_path):
    with pytest.raises(InputError, match="GB are free"):
        write_folder(tmp_path / "out", lambda _: pytest.fail("it wrote"), num_bytes=1 << 60)


def test_the_files_are_named_when_all_is_there(tmp_path):
    assert write_folder(tmp_path / "out", lambda folder: (folder / "a").write_text("whole"), num_bytes=0) == [tmp_path / "out/a"]


def test_a_second_job_is_refused_while_the_first_writes_and_leaves_its_files_alone(tmp_path):
    def write(folder):
        (folder / "a").write_text("first")
        with pytest.raises(InputError, match="being written by another process"):
            write_folder(tmp_path / "out", lambda _: pytest.fail("it wrote"), num_bytes=0)
        (folder / "b").write_text("first")

    assert write_folder(tmp_path / "out", write, num_bytes=0) == [tmp_path / "out/a", tmp_path / "out/b"]
    assert list(tmp_path.iterdir()) == [tmp_path / "out"]


def test_what_a_kill_left_of_an_export_is_in_no_later_one(tmp_path):
    (tmp_path / ".out.tmp/folder").mkdir(parents=True)
    (tmp_path / ".out.tmp/half").write_text("half")
    assert write_folder(tmp_path / "out", lambda folder: (folder / "a").write_text("whole"), num_bytes=0) == [tmp_path / "out/a"]
