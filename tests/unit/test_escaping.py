"""Names as they go out: to a terminal, a table, a picture, a spreadsheet, a file."""

from __future__ import annotations

import ast
import json
import logging
import re
import struct
from pathlib import Path

import numpy as np
import pytest

from kappaspeech.commands import main
from kappaspeech.escaping import encodable, for_cell, for_json, for_line, for_picture, for_table, for_terminal, make_logger

NAMES = {
    "escape": "layers.0.\x1b]0;PWNED\x07\x1b[2Jq.weight",
    "line feed": "layers.0.a.weight\nb.weight",
    "carriage return": "layers.0.a\rb.weight",
    "line separator": "layers.0.a\u2028b.weight",
    "markup": "layers.0.w[/red].weight",
    "link": "layers.0.[link=file:///etc/passwd]w[/link].weight",
    "bidirectional": "layers.0.\u202eevil.weight",
    "mathtext": "layers.0.$\\frac$.weight",
    "dollars": "layers.0.$x$y$.weight",
    "digits": "layers." + "9" * 5000 + ".q_proj.weight",
    "Arabic digit": "layers.\u0663.q.weight",
    "superscript": "layers.\u00b2.q.weight",
    "formula": "=cmd|' /C calc'!A0.weight",
    "html": "layers.0.</script><script>alert(1)</script>.weight",
    "underscore": "layers.0._q.weight",
    "long": "layers.0." + "x" * 20_000 + ".weight",
}


@pytest.mark.parametrize("name", NAMES.values(), ids=NAMES)
def test_nothing_that_a_terminal_obeys_leaves(name):
    shown = for_line(name)
    assert not any(letter in shown for letter in "\x1b\x07\r\n\u202e\u2028")
    assert len(shown) <= 202
    assert for_table(name).plain == shown
    assert not for_picture(name).replace(r"\$", "").count("$")


def test_plain_names_and_sentences_stay_as_they_are():
    for text in ("model.layers.0.self_attn.q_proj.weight", "κ ≤ 3 «über» 音声\nnext\tcell"):
        assert for_terminal(text) == text
    assert for_cell("model.layers.0.weight") == "model.layers.0.weight"
    assert (for_cell(-1.5), for_cell(None)) == (-1.5, None)


@pytest.mark.parametrize("text", ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1"])
def test_a_cell_is_never_a_formula(text):
    assert for_cell(text)[0] not in "=+-@\t\r"


def test_bytes_that_are_no_text_become_escapes():
    assert encodable("h\udcffi") == "h\\xffi"
    assert encodable("höi") == "höi"
    assert encodable("h\udcc3\udcb6i") == "höi"  # a locale that took UTF-8 for bytes


def make_checkpoint(folder: Path, name: str) -> Path:
    folder.mkdir()
    entries = {
        key: {"dtype": "F32", "shape": [4, 6], "data_offsets": [start, start + 96]}
        for key, start in ((name, 0), ("model.layers.0.q.weight", 96))
    }
    header = json.dumps(entries).encode()
    values = np.random.default_rng(0).normal(size=48).astype("<f4").tobytes()
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + values)
    return folder


@pytest.mark.parametrize("name", NAMES.values(), ids=NAMES)
def test_a_checkpoint_with_such_a_name_is_scanned_shown_and_selected_from(tmp_path, capsys, name):
    ranking = tmp_path / "ranking.json"
    folder = make_checkpoint(tmp_path / "model", name)
    assert main(["scan", str(folder), "--workers", "1", "--no-journal", "--output", str(ranking)]) == 0
    paths = {kind: tmp_path / f"r.{kind}" for kind in ("csv", "svg")}
    assert main(["show", str(ranking), "--csv", str(paths["csv"]), "--picture", str(paths["svg"])]) == 0
    select = ["select", str(ranking), "--count", "2", "--output", str(tmp_path / "s.json")]
    assert main([*select, "--export", "peft", "--export", "axolotl", "--export", "kappatune"]) == 0
    out = capsys.readouterr().out
    assert not any(letter in out for letter in "\x1b\x07\r\u202e\u2028")
    assert len(paths["csv"].read_text().splitlines()) == 3
    assert "<script>alert" not in paths["svg"].read_text()
    code = main([*select, "--export", "names"])
    assert code == (0 if name.splitlines() == [name] else 2)


def test_a_name_that_no_file_could_hold_is_refused(tmp_path, capsys):
    folder = make_checkpoint(tmp_path / "model", "layers.0.\ud800.weight")
    assert main(["scan", str(folder), "--workers", "1", "--no-journal", "--output", str(tmp_path / "r.json")]) == 2
    assert "header" in capsys.readouterr().err


def test_a_folder_whose_name_is_no_text_is_scanned(tmp_path):
    folder = make_checkpoint(tmp_path / "m\udcffodel", "layers.0.weight")
    assert main(["scan", str(folder), "--workers", "1", "--no-journal", "--output", str(tmp_path / "r.json")]) == 0
    assert json.loads((tmp_path / "r.json").read_text())["model"].endswith("m\\xffodel")


def test_log_lines_are_escaped_and_without_secrets_whoever_takes_them(tmp_path):
    logger = make_logger("kappaspeech.a_module")
    handler = logging.FileHandler(tmp_path / "log.txt", encoding="utf-8")
    root = logging.getLogger()
    root.addHandler(handler)
    try:
        url = "https://me:hunter2@host/x.tar?sig=hunter2"
        logger.warning("%s of %s is damaged: %d %%", NAMES["escape"], url, 5)
        logger.error("%s", OSError("a\rb %s \u202e"))
    finally:
        root.removeHandler(handler)
        handler.close()
    first, second = (tmp_path / "log.txt").read_text(encoding="utf-8").splitlines()
    assert first == "layers.0.\\x1b]0;PWNED\\x07\\x1b[2Jq.weight of https://***@host/x.tar?*** is damaged: 5 %"
    assert second == "a\\rb %s \\u202e"


def test_no_module_has_a_logger_that_escapes_nothing():
    package = Path(__file__).parents[2] / "pipeline/kappaspeech"
    assert [path.name for path in package.rglob("*.py") if "getLogger" in path.read_text(encoding="utf-8")] == ["escaping.py"]


# what is printed as it is: numbers, this program's own words, tables of `for_table`'s cells, and what programs read
AS_IT_IS = (
    r"kappaspeech \{kappaspeech.__version__\}",
    r"json.dumps\((?!.*ensure_ascii)",
    r"'\\t'.join\(\[\*columns",
    r"\{section\.path|  \{key\.name|      \{key\.description",
    r"table$|shown$|content$|describe_choice",
    r"\{counts\[|  \{edits\}; CER|texts cut: \{|WER \{name\} |This is for GPUs|len\(|_share_named\(",
    r"error: rank \{rank\} was|warning: a worker that loads",
)


def test_whatever_is_printed_has_been_escaped():
    package = Path(__file__).parents[2] / "pipeline/kappaspeech"
    calls = [
        (path.name, ast.unparse(argument))
        for path in package.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and getattr(node.func, "id", getattr(node.func, "attr", "")) == "print"
        for argument in node.args
        if not isinstance(argument, ast.Constant)
    ]
    assert len(calls) > 40
    bare = [call for call in calls if not re.search(r"for_(terminal|line|column|json)\b", call[1])]
    assert [call for call in bare if not re.match(rf"(f?['\"])?({'|'.join(AS_IT_IS)})", call[1])] == []


@pytest.mark.parametrize("encoding", ["utf-8", "latin-1", "ascii", None, "no-such-encoding"])
def test_json_stays_json_whatever_a_terminal_takes(encoding):
    value = {"a\x7fb\x85": ["\x9b2J", "\u2028", "\udcff", "é κ 音 \U0001f600", "next\tline\n"]}
    shown = for_json(json.dumps(value, ensure_ascii=False, indent=1), encoding)
    assert json.loads(shown) == value
    assert for_terminal(shown) == shown
    if encoding not in (None, "no-such-encoding"):
        shown.encode(encoding)


def test_json_that_a_terminal_takes_stays_as_it_is():
    assert for_json('{"text": "öffne die Tür 音"}', "utf-8") == '{"text": "öffne die Tür 音"}'
