"""Every command, with its output in every kind of place: exit codes, sentences, and what is left of the place.

| place | a file is written | a folder is made |
|---|---|---|
| a symbolic link | 0, the link stays | 0 |
| a device, a pipe with a reader | 0, and it stays one | 2 |
| /dev/full | 1, after the work | 2 |
| a full disk | 1, before the work | 1, before the work |
| a read-only disk, a folder or a file in the way, a name that is too long | 2, before the work | 2, before the work |
"""

from __future__ import annotations

import os
import stat
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from kappaspeech.commands import main
from tests import tiny
from tests.patience import patience

# of each command what comes before the output, which is a file
FILES = {
    "scan": ["scan", "{home}/llm", "--workers", "1", "--no-journal", "--output"],
    "scan --spectrum": ["scan", "{home}/llm", "--workers=1", "--no-journal", "--output={tmp}/r.json", "--spectrum"],
    "select": ["select", "{home}/ranking.json", "--count", "2", "--output"],
    "show --csv": ["show", "{home}/ranking.json", "--csv"],
    "index": ["index", "{home}/shards/test/*.tar", "--output"],
    "plan": ["plan", "{tmp}/run.yaml", "--output"],
}
SLOW_FILES = {
    "evaluate": ["evaluate", "{run}", "--no-page", "--output"],
    "transcribe": ["transcribe", "{run}", "{home}/speech/test/en/000.flac", "--output"],
}
# and here it is a folder, behind an = if it is part of a word
FOLDERS = {
    "pack": ["pack", "{home}/speech/test", "--workers", "1"],
    "train": ["train", "{tmp}/run.yaml", "--set", "run_dir="],
    "compare": ["compare", "{made}/a", "{made}/b", "--output"],
}
SLOW_FOLDERS = {"export": ["export", "{run}"]}


def slow(commands: dict[str, list[str]]) -> list:
    return [pytest.param(words, id=name, marks=pytest.mark.slow) for name, words in commands.items()]


def quick(commands: dict[str, list[str]]) -> list:
    return [pytest.param(words, id=name) for name, words in commands.items()]


FILE_COMMANDS = [*quick(FILES), *slow(SLOW_FILES)]
FOLDER_COMMANDS = [*quick(FOLDERS), *slow(SLOW_FOLDERS)]


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    from tests.made_runs import make_run

    folder = tmp_path_factory.mktemp("made")
    for arm in ("a", "b"):
        make_run(folder / arm, arm, seed=1, error_rate=0.2, num_clips=2)
    return folder


@pytest.fixture
def start(request, home, made, tmp_path, capsys, monkeypatch):
    """Run a command with its output at a place; its exit code and what it said."""
    monkeypatch.chdir(Path(__file__).parents[2])
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")

    def run(words: list[str], place: Path) -> tuple[int, str]:
        tiny.write_config(tmp_path / "run.yaml", home, tmp_path / "run", data__test=[])
        trained = request.getfixturevalue("one_rank") if "{run}" in words else None
        given = [word.format(home=home, tmp=tmp_path, made=made, run=trained) for word in words]
        full = [*given[:-1], f"{given[-1]}{place}"] if given[-1].endswith("=") else [*given, str(place)]
        code = main(full)
        printed = capsys.readouterr()
        assert "Traceback" not in printed.err
        return code, printed.err

    return run


@pytest.fixture
def disk(tmp_path) -> Iterator[Path]:
    """A small file system of its own."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if os.geteuid() != 0 or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "none", folder], check=False).returncode:
        pytest.skip("only root may mount a file system")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


def device(words: list[str], folder: Path, name: str) -> Path:
    """A device, by the kind of name that the command asks of its output."""
    if words[0] != "index":
        return Path("/dev") / name
    link = folder / f"{name}.index"
    link.symlink_to(f"/dev/{name}")
    return link


def fill(disk: Path) -> None:
    with (disk / "filler").open("wb", buffering=0) as file:
        try:
            while file.write(bytes(4096)):
                pass
        except OSError:
            return


@pytest.mark.parametrize("words", FILE_COMMANDS)
def test_a_link_a_device_and_a_pipe_are_written_to_and_stay(start, tmp_path, words):
    link, target = tmp_path / "link.index", tmp_path / "target.index"
    link.symlink_to(target)
    assert start(words, link)[0] == 0
    assert link.is_symlink()
    assert target.stat().st_size > 0
    assert start(words, device(words, tmp_path, "null"))[0] == 0
    assert stat.S_ISCHR(Path("/dev/null").stat().st_mode)
    assert not list(Path("/dev").glob("null?*"))
    pipe = tmp_path / "pipe.index"
    os.mkfifo(pipe)
    got: list[bytes] = []
    reader = threading.Thread(target=lambda: got.append(pipe.read_bytes()), daemon=True)
    reader.start()
    assert start(words, pipe)[0] == 0
    reader.join(patience(10))
    assert got[0][:4] == target.read_bytes()[:4]
    assert stat.S_ISFIFO(pipe.stat().st_mode)


@pytest.mark.parametrize("words", FILE_COMMANDS)
def test_a_full_device_is_told(start, tmp_path, words):
    place = device(words, tmp_path, "full")
    code, said = start(words, place)
    assert said.endswith(f"error: {place} can't be used: No space left on device. Make room there, or give another place.\n")
    assert code == 1


@pytest.mark.parametrize("words", [*FILE_COMMANDS, *FOLDER_COMMANDS])
def test_a_full_disk_is_told(start, disk, words):
    fill(disk)
    code, said = start(words, disk / "x.index")
    assert f"{disk}" in said
    assert "No space left on device" in said or "free" in said
    assert (code, [path.name for path in disk.iterdir()]) == (1, ["filler"])


@pytest.mark.parametrize("words", [*FILE_COMMANDS, *FOLDER_COMMANDS])
def test_a_read_only_disk_is_told(start, disk, words):
    subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
    code, said = start(words, disk / "x.index")
    assert f"{disk}" in said
    assert "Read-only file system" in said
    assert code == 2


@pytest.mark.parametrize("words", FILE_COMMANDS)
@pytest.mark.parametrize("place", ["folder", "file/x", "x" * 256])
def test_what_cannot_be_a_file_is_told(start, tmp_path, words, place):
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    code, said = start(words, tmp_path / place)
    assert said.startswith("error: ")
    assert place in said
    assert code == 2
    assert list((tmp_path / "folder").iterdir()) == []


@pytest.mark.parametrize("words", FOLDER_COMMANDS)
@pytest.mark.parametrize("place", ["/dev/null", "pipe", "file", "file/x"])
def test_what_cannot_be_a_folder_is_told(start, tmp_path, words, place):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "file").write_text("old")
    code, said = start(words, tmp_path / place)
    assert place in said
    assert code == 2
    assert (tmp_path / "file").read_text() == "old"


def test_doctor_tells_of_a_read_only_run_folder_and_goes_on(home, disk, tmp_path, capsys):
    config = tiny.write_config(tmp_path / "run.yaml", home, disk / "run")
    subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
    assert main(["doctor", str(config)]) == 1
    assert f"disk: {disk} can't be written: Read-only file system" in capsys.readouterr().out


def test_a_scan_with_a_full_journal_goes_on(home, disk, tmp_path, caplog):
    fill(disk)
    output = tmp_path / "ranking.json"
    words = ["scan", str(home / "llm"), "--workers", "1", "--journal", str(disk), "--output", str(output)]
    assert main(words) == 0
    assert output.stat().st_size > 1000
    assert "can't be written any more" in caplog.text
