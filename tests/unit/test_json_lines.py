"""Logs of JSON lines: what their texts may hold, and what is done with lines that are none."""

from __future__ import annotations

import json
import logging

import pytest

from kappaspeech.errors import InputError
from kappaspeech.json_lines import keep_lines, parse_lines, read_last_line, read_lines, write_lines

# at each of these Python's splitlines ends a line
BREAKS = "\u0085\u2028\u2029\x0b\x0c\x1c\x1d\x1e"


def has_step(record):
    return isinstance(record.get("step"), int)


def test_a_text_may_hold_any_line_break_and_half_a_surrogate_pair(tmp_path):
    records = [{"step": 1, "text": f"a{BREAKS}b\n\r\nc"}, {"step": 2, "text": "x\ud800y"}]
    write_lines(tmp_path / "x.jsonl", records)
    assert read_lines(tmp_path / "x.jsonl", strictly=True) == records
    assert (tmp_path / "x.jsonl").read_bytes().decode().count("\n") == 2


@pytest.mark.parametrize("length", [1, 1 << 15, 1 << 18])
@pytest.mark.parametrize("end", [b"", b'{"step": 9, "lo', b"nonsense\n"])
def test_the_last_record_is_found_from_the_end_whatever_its_length(tmp_path, length, end):
    path = tmp_path / "steps.jsonl"
    assert read_last_line(path, is_record=has_step) is None
    path.write_bytes(end)
    assert read_last_line(path, is_record=has_step) is None
    write_lines(path, [{"step": step, "text": "ä" * length} for step in range(5)])
    path.write_bytes(path.read_bytes() + end)
    last = read_last_line(path, is_record=has_step)
    assert last is not None
    assert last["step"] == 4


@pytest.mark.parametrize(
    "line", [b"\xff", b"nonsense", b"[1]", b"{}", b"\xff\xfe{", b"[" * 100_000, b'{"step": ' + b"9" * 5000 + b"}"]
)
def test_a_line_that_is_no_record_is_set_aside_with_a_word_and_the_rest_is_kept(tmp_path, caplog, line):
    path = tmp_path / "steps.jsonl"
    path.write_bytes(b'{"step": 0}\n' + line + b'\n{"step": 1}\n{"step": 2}\n{"step": 3, "lo')
    assert [record["step"] for record in read_lines(path, is_record=has_step)] == [0, 1, 2]
    with pytest.raises(InputError, match=r"steps.jsonl, line 2 can't be read"):
        read_lines(path, is_record=has_step, strictly=True)
    with caplog.at_level(logging.WARNING):
        keep_lines(path, lambda record: record["step"] < 2, is_record=has_step)
    assert path.read_text() == '{"step": 0}\n{"step": 1}\n'
    assert (tmp_path / "steps.jsonl.damaged").read_bytes() == line + b"\n"
    assert "1 line(s) that can't be read (line 2: " in caplog.text
    before = path.stat().st_ino
    keep_lines(path, lambda record: record["step"] < 2, is_record=has_step)
    assert path.stat().st_ino == before


def test_a_last_line_that_a_kill_has_torn_needs_no_word(tmp_path, caplog):
    path = tmp_path / "steps.jsonl"
    path.write_bytes(b'{"step": 0}\n{"step": 1, "lo')
    keep_lines(path, has_step, is_record=has_step)
    assert path.read_text() == '{"step": 0}\n'
    assert caplog.text == ""
    assert [item.name for item in tmp_path.iterdir()] == ["steps.jsonl"]


def test_a_log_that_is_not_there_or_is_empty_has_no_records(tmp_path):
    assert read_lines(tmp_path / "none") == []
    keep_lines(tmp_path / "none", has_step, is_record=has_step)
    assert parse_lines(b"\n\r\n  \n") == ([], [])
    assert parse_lines(json.dumps({"a": 1}).encode()) == ([{"a": 1}], [])
