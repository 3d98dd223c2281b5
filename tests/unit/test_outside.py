"""The door for JSON and other files that others wrote."""

from __future__ import annotations

import os

import pytest
from pydantic import BaseModel

from kappaspeech.artefacts import read_json
from kappaspeech.errors import CheckpointError, InputError
from kappaspeech.outside import describe, explained, open_regular, parse_json, read_into, read_json_file, read_regular


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"[" * 100_000, "nested too deeply"),
        (b"[" * 200 + b"]" * 200, "nested more than 100 deep"),
        (b'{"a": ' + b"1" * 5000 + b"}", "digits"),
        (b'{"a": "\\ud800"}', "surrogates"),
        (b"\xff\xfe\x00", "decode"),
        (b"{nope", "Expecting"),
    ],
)
def test_json_that_no_reader_could_use_is_a_value_error(content, says):
    with pytest.raises(ValueError, match=says):
        parse_json(content)


def test_infinity_and_a_key_that_comes_twice_are_refused_where_that_is_asked_for():
    assert parse_json(b'{"limits": [0.0, Infinity], "a": 1, "a": 2}')["a"] == 2
    with pytest.raises(ValueError, match="Infinity"):
        parse_json(b'{"limits": [0.0, Infinity]}', is_finite=True)
    with pytest.raises(ValueError, match="'a' twice"):
        parse_json(b'{"a": 1, "a": 2}', is_unique=True)


def test_a_byte_order_mark_and_whole_surrogate_pairs_are_read():
    assert parse_json('\ufeff{"a": "\\ud83d\\ude00"}'.encode()) == {"a": "😀"}


def test_pipes_devices_and_folders_are_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", tmp_path, "/dev/zero"):
        with pytest.raises(OSError, match="no file with an end"):
            os.close(open_regular(path))
        with pytest.raises(InputError, match="no file with an end"):
            read_json(tmp_path.joinpath(path), schema_version=1)


def test_a_file_is_read_up_to_its_limit_and_no_further(tmp_path):
    path = tmp_path / "a.json"
    path.write_bytes(b'"' + b"x" * 98 + b'"')
    assert read_json_file(path, most_bytes=100) == "x" * 98
    with pytest.raises(OSError, match="at most 99"):
        read_regular(path, most_bytes=99)
    with path.open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(OSError, match="at most"):
        read_regular(path, most_bytes=1 << 20)


@pytest.mark.parametrize(
    "error",
    [
        RecursionError("maximum recursion depth"),
        MemoryError(),
        OverflowError("int too large"),
        KeyError("dtype"),
        AssertionError(),
        UnicodeDecodeError("utf-8", b"x", 0, 1, "bad"),
        OSError(28, "No space left on device"),
    ],
)
def test_whatever_a_parser_raises_becomes_one_sentence_with_file_and_remedy(error):
    with pytest.raises(CheckpointError) as caught, explained("model.bin can't be read", "Fetch it again.", kind=CheckpointError):
        raise error
    text = str(caught.value)
    assert text.startswith("model.bin can't be read: ")
    assert text.endswith(". Fetch it again.")
    assert (caught.value.exit_code, "\n" in text, len(text) < 500) == (2, False, True)


def test_an_error_that_is_a_sentence_already_passes():
    with pytest.raises(CheckpointError, match=r"^torn$"), explained("x"):
        raise CheckpointError("torn")


def test_a_model_of_pydantic_says_which_field_and_value():
    class Entry(BaseModel):
        rank: int

    with pytest.raises(ValueError) as caught:
        Entry.model_validate({"rank": "x" * 1000})
    assert describe(caught.value).startswith("rank: ")
    assert len(describe(caught.value)) < 300


def test_bytes_that_come_in_parts_are_put_together_up_to_the_end_of_the_file(tmp_path, monkeypatch):
    (tmp_path / "file").write_bytes(bytes(range(100)))
    preadv = os.preadv
    monkeypatch.setattr(os, "preadv", lambda descriptor, views, offset: preadv(descriptor, [views[0][:7]], offset))
    content = bytearray(60)
    with (tmp_path / "file").open("rb") as file:
        assert read_into(memoryview(content), file.fileno(), 10) == 60
        assert bytes(content) == bytes(range(10, 70))
        assert read_into(memoryview(content), file.fileno(), 90) == 10
