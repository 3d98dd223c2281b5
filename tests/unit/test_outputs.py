"""Results appear whole beside what was there, go through what is no regular file, and leave nothing behind."""

from __future__ import annotations

import errno
import os
import signal
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from kappaspeech.artefacts import read_json, write_json, write_text
from kappaspeech.outputs import explain, sweep, try_folder, try_output, write_new, write_with
from tests.patience import patience


def fill(path: Path, text: str) -> None:
    path.write_text(text)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_a_device_gets_the_bytes_and_stays_a_device():
    null = Path("/dev/null")
    before = null.stat()
    write_text(null, "x")
    assert (null.stat().st_ino, null.stat().st_mode) == (before.st_ino, before.st_mode)
    try_output(null)
    with pytest.raises(OSError, match="No space left on device: '/dev/full'"):
        write_text(Path("/dev/full"), "x")
    assert stat.S_ISCHR(Path("/dev/full").stat().st_mode)


def test_a_pipe_gets_the_bytes_and_stays_a_pipe(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    try_output(pipe)  # nobody reads it yet
    got: list[str] = []
    reader = threading.Thread(target=lambda: got.append(pipe.read_text()))
    reader.start()
    text = "line\n" * 50_000
    write_text(pipe, text)
    reader.join(patience(10))
    assert got == [text]
    assert stat.S_ISFIFO(pipe.stat().st_mode)
    assert list(tmp_path.iterdir()) == [pipe]


def test_an_open_file_is_written_to_and_not_replaced(tmp_path):
    with (tmp_path / "out").open("w") as file:
        inode = os.fstat(file.fileno()).st_ino
        write_text(Path(f"/proc/self/fd/{file.fileno()}"), "first\n")
        write_text(Path(f"/dev/fd/{file.fileno()}"), "second\n")
    assert (tmp_path / "out").read_text() == "first\nsecond\n"
    assert (tmp_path / "out").stat().st_ino == inode


@pytest.mark.parametrize("is_there", [True, False])
def test_a_symbolic_link_stays_and_what_it_leads_to_is_written(tmp_path, is_there):
    (tmp_path / "there").mkdir()
    target = tmp_path / "there/file.json"
    if is_there:
        target.write_text("old")
    link = tmp_path / "link"
    link.symlink_to("there/file.json")
    try_output(link)
    write_json(link, {"a": 1})
    assert link.is_symlink()
    assert target.read_text() == '{\n "a": 1\n}\n'
    assert sorted(path.name for path in (tmp_path / "there").iterdir()) == ["file.json"]


@pytest.mark.parametrize("kept", [0o600, 0o640, 0o444])
def test_a_replaced_file_keeps_its_mode(tmp_path, kept):
    path = tmp_path / "x"
    path.write_text("old")
    path.chmod(kept)
    write_with(path, lambda temporary: fill(temporary, "new"))
    assert (path.read_text(), mode(path)) == ("new", kept)


def test_what_replaces_a_private_file_is_private_while_it_is_written(tmp_path):
    path = tmp_path / "x"
    path.write_text("old")
    path.chmod(0o600)
    seen: list[int] = []
    write_with(path, lambda temporary: seen.append(mode(temporary)))
    assert seen == [0o600]


def test_a_new_file_has_what_the_umask_leaves_and_the_umask_is_never_touched(tmp_path, monkeypatch):
    before = os.umask(0o027)
    try:
        monkeypatch.setattr(os, "umask", lambda _mask: pytest.fail("the umask is the whole process's"))
        write_text(tmp_path / "x", "")
        assert mode(tmp_path / "x") == 0o640
    finally:
        monkeypatch.undo()
        os.umask(before)


def test_a_name_of_the_longest_length_can_be_written(tmp_path):
    for name in ("x" * 255, "é" * 127):
        try_output(tmp_path / name)
        write_text(tmp_path / name, "whole")
        assert (tmp_path / name).read_text() == "whole"
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("has_links", [True, False])
def test_a_new_file_is_whole_and_takes_no_others_place(tmp_path, monkeypatch, has_links):
    if not has_links:

        def refuse(*_: Path) -> None:
            raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

        monkeypatch.setattr(os, "link", refuse)
    path = tmp_path / "x"
    write_new(path, lambda temporary: fill(temporary, "whole"))
    before = path.stat()
    assert before.st_nlink == 1

    # another writes while this one does
    with pytest.raises(OSError, match=f"'{path}'"):
        write_new(path, lambda temporary: fill(temporary, "second"))
    assert (path.read_text(), path.stat().st_ino) == ("whole", before.st_ino)
    assert list(tmp_path.iterdir()) == [path]


def test_what_a_killed_write_left_is_swept_and_what_is_being_written_is_not(tmp_path):
    script = (
        "import sys, time; from pathlib import Path; from kappaspeech.outputs import write_with\n"
        "def write(path): path.write_text('half'); print(flush=True); time.sleep(100)\n"
        "write_with(Path(sys.argv[1]), write)"
    )
    target = tmp_path / "ranking.json"
    process = subprocess.Popen([sys.executable, "-c", script, str(target)], stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()
    (leftover,) = tmp_path.iterdir()
    other = tmp_path / ".other.json.0123abcd.tmp"
    other.touch()
    own = tmp_path / ".notes.tmp"
    own.touch()
    try_output(target)
    assert leftover.exists()
    process.send_signal(signal.SIGKILL)
    with process:
        pass
    try_output(target)
    assert sorted(tmp_path.iterdir()) == sorted([other, own])
    sweep(tmp_path)
    assert list(tmp_path.iterdir()) == [own]


def test_outputs_are_tried_without_making_or_changing_anything(tmp_path):
    (tmp_path / "old").write_text("old")
    before = (tmp_path / "old").stat().st_mtime_ns
    try_output(tmp_path / "old")
    try_output(tmp_path / "new/deep/file")
    try_folder(tmp_path / "new/deep")
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("old", "old")]
    assert (tmp_path / "old").stat().st_mtime_ns == before


def make_loop(folder: Path) -> Path:
    (folder / "loop").symlink_to("loop")
    return folder / "loop"


def make_file(folder: Path) -> Path:
    (folder / "file").touch()
    return folder / "file/under"


@pytest.mark.parametrize(
    ("make", "cause"),
    [
        (lambda folder: folder, errno.EISDIR),
        (make_loop, errno.ELOOP),
        (make_file, errno.ENOTDIR),
        (lambda folder: folder / ("x" * 256), errno.ENAMETOOLONG),
        (lambda _: Path("/proc/new"), errno.ENOENT),
    ],
)
def test_a_path_that_cannot_be_written_is_refused_before_and_after_the_work_by_name(tmp_path, make, cause):
    path = make(tmp_path)
    for write in (try_output, lambda path: write_text(path, "x")):
        with pytest.raises(OSError) as caught:
            write(path)
        sentence, code = explain(caught.value)
        assert caught.value.errno == cause
        assert sentence.startswith(f"{path}")
        assert sentence.endswith(".")
        assert code == 2


def test_an_error_of_the_system_in_a_librarys_words_is_one_of_the_systems(tmp_path):
    def write(_path: Path) -> None:
        raise RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)")

    with pytest.raises(OSError) as caught:
        write_with(tmp_path / "x", write)
    assert explain(caught.value) == (
        f"{tmp_path / 'x'} can't be used: No space left on device. Make room there, or give another place.",
        1,
    )
    assert list(tmp_path.iterdir()) == []


def test_half_a_surrogate_pair_is_written_as_a_text_that_is_read_again(tmp_path):
    """A path of bytes that are no text may be the reason of a failure, and run.json has to be read after it."""
    write_json(tmp_path / "x", {"schema_version": 1, "a": "x\ud800\u2028é"})
    assert read_json(tmp_path / "x", schema_version=1) == {"schema_version": 1, "a": "x\\ud800\u2028é"}


def test_an_error_about_another_file_keeps_its_name(tmp_path):
    with pytest.raises(FileNotFoundError, match="elsewhere"):
        write_with(tmp_path / "x", lambda _: (tmp_path / "elsewhere").read_text())
