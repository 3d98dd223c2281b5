"""An experiment sent in pieces: the files that its trials read, to a host that has nothing else of it."""

from __future__ import annotations

import importlib
import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from kappaspeech.comparison.experiment import read_experiment
from tests import tiny

REPOSITORY = Path(__file__).parents[2]
ARMS = [
    {"name": "smallest κ", "select": "smallest"},
    {
        "name": "held",
        "select": "smallest",
        "replay": {"texts": {"en": "replay/en.txt"}, "texts_per_step": 1, "weight": 0.0, "anchor_weight": 1.0},
    },
]


@pytest.fixture
def pieces(monkeypatch) -> Any:
    monkeypatch.syspath_prepend(str(REPOSITORY / "benchmarks"))
    return importlib.import_module("pieces")


@pytest.fixture
def real_speech(monkeypatch) -> Any:
    monkeypatch.syspath_prepend(str(REPOSITORY / "benchmarks"))
    return importlib.import_module("real_speech")


def make_files(root: Path) -> list[Path]:
    (root / "folder").mkdir(parents=True)
    (root / "folder/random").write_bytes(os.urandom(300_000))
    (root / "folder/even").write_bytes(bytes(1_000_000))
    (root / "link").symlink_to(root / "folder/random")
    (root / "unsent").touch()
    return [Path("folder/random"), Path("folder/even"), Path("link")]


def test_files_come_out_of_pieces_as_they_went_in(pieces, tmp_path):
    files = make_files(tmp_path / "here")
    made = pieces.write_pieces(tmp_path / "here", files, tmp_path / "pieces", limit_bytes=100_000)
    assert len(made) >= 6
    assert all(path.stat().st_size <= 100_000 for path in made)
    pieces.read_pieces(tmp_path / "pieces", tmp_path / "there")
    came = {path.relative_to(tmp_path / "there"): path for path in (tmp_path / "there").rglob("*") if path.is_file()}
    assert came.keys() == set(files)
    for name, path in came.items():
        assert path.read_bytes() == (tmp_path / "here" / name).read_bytes()
        # an index tells by it if its shard has changed
        assert int(path.stat().st_mtime) == int((tmp_path / "here" / name).stat().st_mtime)
        assert not path.is_symlink()


def test_pieces_are_unpacked_by_xz_and_tar_too(pieces, tmp_path):
    if not shutil.which("xz"):
        pytest.skip("there is no xz on this machine")
    made = pieces.write_pieces(tmp_path / "here", make_files(tmp_path / "here"), tmp_path / "pieces", limit_bytes=100_000)
    joined = b"".join(path.read_bytes() for path in made)
    unpacked = subprocess.run(["xz", "-dc"], input=joined, stdout=subprocess.PIPE, check=True).stdout
    listed = subprocess.run(["tar", "-t"], input=unpacked, stdout=subprocess.PIPE, check=True).stdout
    assert listed.decode().split() == ["folder/even", "folder/random", "link"]


def test_pieces_that_lead_out_of_their_folder_are_refused(pieces, tmp_path):
    make_files(tmp_path / "here/inner")
    pieces.write_pieces(tmp_path / "here/inner", [Path("../inner/unsent")], tmp_path / "pieces", limit_bytes=100_000)
    with pytest.raises(SystemExit, match=r"\.\./inner/unsent"):
        pieces.read_pieces(tmp_path / "pieces", tmp_path / "there")
    assert not (tmp_path / "inner").exists()


def test_fewer_pieces_leave_none_of_the_last_ones(pieces, tmp_path):
    files = make_files(tmp_path / "here")
    pieces.write_pieces(tmp_path / "here", files, tmp_path / "pieces", limit_bytes=100_000)
    (only,) = pieces.write_pieces(tmp_path / "here", files[1:2], tmp_path / "pieces", limit_bytes=100_000)
    assert {path.name for path in (tmp_path / "pieces").iterdir()} == {only.name, "pieces.json"}


def test_a_missing_piece_and_a_damaged_one_are_named(pieces, tmp_path):
    made = pieces.write_pieces(tmp_path / "here", make_files(tmp_path / "here"), tmp_path / "pieces", limit_bytes=100_000)
    whole = made[1].read_bytes()
    made[1].write_bytes(whole[:-1])
    with pytest.raises(SystemExit, match=r"piece-0001 in .* Send it again"):
        pieces.read_pieces(tmp_path / "pieces", tmp_path / "there")
    made[1].unlink()
    with pytest.raises(SystemExit, match=rf"lacks 1 of {len(made)} pieces: piece-0001"):
        pieces.read_pieces(tmp_path / "pieces", tmp_path / "there")
    (tmp_path / "pieces/pieces.json").unlink()
    with pytest.raises(SystemExit, match=r"pieces has no pieces\.json"):
        pieces.read_pieces(tmp_path / "pieces", tmp_path / "there")
    assert not (tmp_path / "there").exists()


@pytest.mark.slow
def test_a_host_trains_on_what_came_in_pieces_alone(home, tmp_path, pieces, real_speech):
    """The trials' files and no others are sent; stopped by its time, the record is of what has finished."""
    work, host = tmp_path / "work", tmp_path / "host"
    shutil.copytree(home, work)
    (work / "replay").mkdir()
    shutil.copy(work / "text.txt", work / "replay/en.txt")
    for folder in (work, tmp_path):
        tiny.write_config(folder / "run.yaml", Path(), Path("unused"), unfreeze__selection=None, training__num_steps=2)
    path = tmp_path / "experiment.yaml"
    content = {"base": "run.yaml", "output": "out", "ranking": "ranking.json", "count": 4, "arms": ARMS[:1], "seeds": [17]}
    path.write_text(yaml.safe_dump({**content, "arms": ARMS}, allow_unicode=True), encoding="utf-8")

    files = real_speech.find_read(work, read_experiment(path))
    assert {file.parts[0] for file in files} == {"llm", "whisper.pt", "shards", "text.txt", "ranking.json", "replay"}
    pieces.write_pieces(work, files, tmp_path / "pieces", limit_bytes=1 << 18)
    shutil.rmtree(work)
    pieces.read_pieces(tmp_path / "pieces", host)

    path.write_text(yaml.safe_dump(content, allow_unicode=True), encoding="utf-8")
    assert real_speech.train(host, path, jobs=1, minutes=None) == 0
    path.write_text(yaml.safe_dump({**content, "arms": ARMS}, allow_unicode=True), encoding="utf-8")
    assert real_speech.train(host, path, jobs=1, minutes=0.0) == 0
    record = real_speech.describe(host / "out", path, jobs=1, seconds=0.0, received=True)
    assert [arm["arm"] for arm in record["arms"]] == ["smallest κ"]
    assert list(record["missing"]) == ["held, seed 17"]
    assert record["command"].startswith("python benchmarks/real_speech.py --received PIECES")
    assert str(tmp_path) not in json.dumps(record)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "either RECORDINGS or --received"),
        (["--received", "pieces", "--texts", "texts"], "leave --texts, --fortunes and --send out"),
        (["--received", "pieces", "--minutes", "nan"], "--minutes is above 0"),
        (["--received", "pieces", "--jobs", "0"], "--jobs are at least 1"),
        (["recordings", "--experiment", "figure1"], "either --texts or --fortunes"),
    ],
)
def test_options_that_say_nothing_together_are_refused_at_once(real_speech, monkeypatch, capsys, words, said):
    monkeypatch.setattr("sys.argv", ["real_speech.py", *words])
    with pytest.raises(SystemExit):
        real_speech.parse_arguments()
    assert said in capsys.readouterr().err
