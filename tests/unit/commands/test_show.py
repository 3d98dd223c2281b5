"""A ranking as table, CSV, Parquet and picture."""

from __future__ import annotations

import csv
import json
import math
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path
from statistics import median

import numpy as np
import pytest

from kappaspeech.commands import main
from kappaspeech.scan.picture import write_picture
from kappaspeech.scan.places import short_names
from kappaspeech.scan.ranking import KappaRanking
from kappaspeech.scan.scores import SCORES
from kappaspeech.scan.summary import format_kappa, summarise_scan
from kappaspeech.scan.table import rows
from kappaspeech.selection.candidates import module_type
from tests.terminals import run_on_terminal


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
    import pyarrow.parquet as parquet

    assert main(["show", str(home / "ranking.json"), "--parquet", str(tmp_path / "r.parquet")]) == 0
    read = parquet.read_table(tmp_path / "r.parquet").to_pylist()
    assert [row["kappa"] for row in read] == [matrix.stats.kappa for matrix in ranking.matrices]


def test_a_picture_of_an_unknown_kind_or_score_is_refused(home, tmp_path, capsys):
    assert main(["show", str(home / "ranking.json"), "--picture", str(tmp_path / "x.bmp")]) == 2
    assert main(["show", str(home / "ranking.json"), "--picture", str(tmp_path / "x.png"), "--score", "beauty"]) == 2
    assert "beauty" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("columns", [80, 40])
def test_a_terminal_shows_whole_numbers_and_cuts_nothing_off(home, ranking, columns):
    words = ["show", str(home / "ranking.json"), "--selection", str(home / "selection.json")]
    printed, code = run_on_terminal(words, columns=columns)
    assert code == 0, printed
    assert max(map(len, printed.splitlines())) <= columns
    assert "…" not in printed
    for matrix in (ranking.matrices[0], ranking.matrices[-1]):
        assert format_kappa(matrix.stats.kappa) in printed
    assert ("shape" in printed) == (columns == 80)
    if columns == 80:
        assert short_names([matrix.name for matrix in ranking.matrices])[ranking.matrices[0].name] in printed


def test_without_a_selection_there_is_no_column_for_it(home, capsys):
    assert main(["show", str(home / "ranking.json")]) == 0
    assert "selected" not in capsys.readouterr().out


def test_a_pipe_gets_every_row_with_whole_names(home, capsys, ranking):
    assert main(["show", str(home / "ranking.json")]) == 0
    header, *lines = [line.split("\t") for line in capsys.readouterr().out.splitlines()]
    assert header == ["rank", "name", "shape", "kappa", "log2_volume", "error_bound"]
    assert [line[1] for line in lines] == [matrix.name for matrix in ranking.matrices]
    assert [float(line[3]) for line in lines] == [matrix.stats.kappa for matrix in ranking.matrices]
    assert main(["show", str(home / "ranking.json"), "--rows", "1"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 3


def test_json_holds_every_row_and_nothing_else(home, capsys, ranking):
    words = ["show", str(home / "ranking.json"), "--selection", str(home / "selection.json"), "--json"]
    assert main(words) == 0
    content = json.loads(capsys.readouterr().out)
    assert [row["name"] for row in content["rows"]] == [matrix.name for matrix in ranking.matrices]
    assert any(row["selected"] for row in content["rows"])


def test_a_selection_from_another_checkpoint_is_marked_with_a_warning(home, tmp_path, capsys):
    content = json.loads((home / "selection.json").read_text())
    (tmp_path / "other.json").write_text(json.dumps({**content, "checkpoint_digest": "0" * 64, "model": "another-llm"}))
    for path, warned in ((home / "selection.json", False), (tmp_path / "other.json", True)):
        assert main(["show", str(home / "ranking.json"), "--selection", str(path), "--json"]) == 0
        said = capsys.readouterr()
        assert any(row["selected"] for row in json.loads(said.out)["rows"])
        assert ("was chosen from another-llm, another checkpoint than " in said.err) == warned


def test_a_score_orders_the_table_and_an_unknown_one_is_refused(home, capsys, ranking):
    assert main(["show", str(home / "ranking.json"), "--score", "stable-rank"]) == 0
    scores = [float(line.split("\t")[-1]) for line in capsys.readouterr().out.splitlines()[1:]]
    assert scores == sorted(SCORES["stable-rank"](matrix.stats) for matrix in ranking.matrices)
    assert main(["show", str(home / "ranking.json"), "--score", "beauty"]) == 2
    assert "There is no score 'beauty'. There are: kappa, " in capsys.readouterr().err


def test_a_scan_ends_with_what_it_found(ranking):
    loose, *others = ranking.matrices
    loose = replace(loose, stats=replace(loose.stats, error_bound=1e-3), storage_noise=2.0)
    lines = summarise_scan(replace(ranking, matrices=(loose, *others)), Path("my ranking.json"), seconds=2.4)
    assert lines[0] == f"{len(ranking.matrices)} matrices ranked in 2 s: my ranking.json"
    kinds = Counter(module_type(matrix.parameter) for matrix in ranking.matrices)
    rows = {line.split()[0]: line.split() for line in lines[2 : 2 + len(kinds)]}
    assert {kind: int(row[1]) for kind, row in rows.items()} == kinds
    kappas = [matrix.stats.kappa for matrix in ranking.matrices if module_type(matrix.parameter) == "v_proj"]
    assert rows["v_proj"][2:] == [format_kappa(value) for value in (min(kappas), median(kappas), max(kappas))]
    text = "\n".join(lines)
    assert f"1 of them have an error bound above --rtol {ranking.rtol:g}" in text
    assert "1 of them have a smallest singular value below their dtype's rounding" in text
    assert lines[-1].startswith("next: kappaspeech select 'my ranking.json' --count ")


def test_each_tower_has_a_panel_and_experts_are_all_looked_at(tmp_path, ranking):
    towers = ("encoder.blocks", "decoder.blocks")
    made = [f"{tower}.{layer}.{kind}.weight" for tower in towers for layer in (0, 1) for kind in ("attn.query", "mlp.0")]
    made += [f"decoder.blocks.{layer}.cross_attn.query.weight" for layer in (0, 1)]
    made += [f"decoder.blocks.0.experts.{expert}.up.weight" for expert in range(3)]
    matrices = tuple(replace(ranking.matrices[0], name=name, parameter=name, aliases=()) for name in made)
    write_picture(replace(ranking, model="both", matrices=matrices), tmp_path / "r.svg", score="kappa", selected=made[:1])
    drawn = re.findall(r"<!-- (.*?) -->", (tmp_path / "r.svg").read_text())
    assert "both: κ of 13 matrices" in drawn
    assert "encoder.blocks: log₁₀ κ; dots are selected" in drawn
    assert "decoder.blocks: log₁₀ κ, median of 3 experts; dots are selected" in drawn
    # self-attention's and cross-attention's queries have a row each
    assert {"attn.query", "cross_attn.query", "mlp.0", "up"} <= set(drawn)


def test_kappas_are_written_whole():
    assert [format_kappa(value) for value in (3.9493861, 1340288.2, 999.96, math.inf, None, 1e13)] == [
        "3.94939",
        "1,340,288",
        "999.96",
        "∞",
        "∞",
        "1e+13",
    ]


def test_modules_and_towers_that_find_no_place_are_counted(tmp_path, ranking):
    made = [f"a.blocks.{layer}.part{number}.weight" for layer in (0, 1) for number in range(43)]
    made += [f"tower{number}.blocks.0.q.weight" for number in range(7)]
    matrices = tuple(replace(ranking.matrices[0], name=name, parameter=name, aliases=()) for name in made)
    write_picture(replace(ranking, matrices=matrices), tmp_path / "r.svg", score="kappa")
    drawn = re.findall(r"<!-- (.*?) -->", (tmp_path / "r.svg").read_text())
    assert "layer (3 more modules aren't drawn)" in drawn
    assert "layer (2 more towers aren't drawn)" in drawn


def test_a_pipe_gets_the_whole_of_a_very_long_name(tmp_path, capsys, ranking):
    name = f"model.layers.0.{'long.' * 60}q\tproj.weight"
    matrices = (replace(ranking.matrices[0], name=name, parameter=name, aliases=()),)
    replace(ranking, matrices=matrices).write(tmp_path / "ranking.json")
    assert main(["show", str(tmp_path / "ranking.json")]) == 0
    assert name.replace("\t", "\\t") in capsys.readouterr().out.splitlines()[1].split("\t")
