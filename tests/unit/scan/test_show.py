"""A ranking as table, CSV, Parquet and picture."""

from __future__ import annotations

import csv
from dataclasses import replace

import numpy as np
import pytest
from kappaspeech.commands import main
from kappaspeech.scan.ranking import KappaRanking
from kappaspeech.scan.scores import SCORES
from kappaspeech.scan.table import rows


@pytest.fixture(scope="module")
def ranking(home) -> KappaRanking:
    return KappaRanking.read(home / "ranking.json")


def test_a_row_holds_the_matrix_its_type_and_every_score(ranking):
    table = rows(ranking)
    assert [row["rank"] for row in table] == list(range(1, len(ranking.matrices) + 1))
    for row, matrix in zip(table, ranking.matrices, strict=True):
        assert (row["name"], row["kappa"]) == (matrix.name, matrix.stats.kappa)
        assert {key for key in row if key.startswith("score_")} == {f"score_{name.replace('-', '_')}" for name in SCORES}


def test_show_writes_what_was_asked_for_and_the_same_each_time(home, tmp_path, capsys, ranking):
    def show(name: str) -> list[bytes]:
        paths = {option: tmp_path / f"{name}.{option}" for option in ("csv", "png", "svg")}
        words = ["show", str(home / "ranking.json"), "--selection", str(home / "selection.json"), "--csv", str(paths["csv"])]
        assert main([*words, "--picture", str(paths["png"])]) == 0
        assert main([*words, "--picture", str(paths["svg"]), "--score", "stable-rank"]) == 0
        return [path.read_bytes() for path in paths.values()]

    first = show("first")
    assert first == show("second")
    lines = list(csv.DictReader(first[0].decode().splitlines()))
    assert [line["name"] for line in lines] == [matrix.name for matrix in ranking.matrices]
    assert [float(line["kappa"]) for line in lines] == [matrix.stats.kappa for matrix in ranking.matrices]
    assert first[1].startswith(b"\x89PNG")
    assert b"<svg" in first[2]
    assert capsys.readouterr().out.count("yes") >= 4


def test_a_picture_shows_spectra_and_refuses_those_of_another_checkpoint(home, tmp_path, capsys, ranking):
    spectra = {matrix.name: np.linspace(2, 1, 9, dtype=np.float32) for matrix in ranking.matrices}
    own, foreign = tmp_path / "own.safetensors", tmp_path / "foreign.safetensors"
    replace(ranking, spectra=spectra).write_spectra(own)
    replace(ranking, spectra=spectra, checkpoint_digest="0" * 64).write_spectra(foreign)
    words = ["show", str(home / "ranking.json"), "--picture", str(tmp_path / "r.svg"), "--spectra"]
    assert main([*words, str(own)]) == 0
    assert "place in the spectrum" in (tmp_path / "r.svg").read_text()
    assert main([*words, str(foreign)]) == 2
    assert "another checkpoint" in capsys.readouterr().err
    assert main([*words, str(home / "ranking.json")]) == 2


def test_parquet_holds_the_same_rows(home, tmp_path, ranking):
    parquet = pytest.importorskip("pyarrow.parquet", reason="pyarrow isn't installed")
    assert main(["show", str(home / "ranking.json"), "--parquet", str(tmp_path / "r.parquet")]) == 0
    read = parquet.read_table(tmp_path / "r.parquet").to_pylist()
    assert [row["kappa"] for row in read] == [matrix.stats.kappa for matrix in ranking.matrices]


def test_a_picture_of_an_unknown_kind_or_score_is_refused(home, tmp_path, capsys):
    assert main(["show", str(home / "ranking.json"), "--picture", str(tmp_path / "x.bmp")]) == 2
    assert main(["show", str(home / "ranking.json"), "--picture", str(tmp_path / "x.png"), "--score", "beauty"]) == 2
    assert "beauty" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
