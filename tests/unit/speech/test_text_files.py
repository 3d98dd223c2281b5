"""Lists in any encoding that says what it is; a line ends where a line ends."""

from __future__ import annotations

import json

import pytest

from kappaspeech.commands import main
from kappaspeech.errors import DataError
from kappaspeech.speech.layouts import find_recordings
from kappaspeech.speech.text_files import read_lines
from tests.speech_files import clip, save

NO_LINE_ENDS = ["\u2028", "\u2029", "\x85", "\x0b", "\x0c", "\x1c", "\x1d", "\x1e"]


def transcripts(folder) -> list[str]:
    return [recording.transcript for recording in find_recordings(folder)]


@pytest.mark.parametrize("sign", NO_LINE_ENDS, ids=[f"U+{ord(sign):04X}" for sign in NO_LINE_ENDS])
def test_a_sign_in_a_transcript_ends_no_line(tmp_path, sign):
    text = f"first{sign}second"
    save(tmp_path / "t/en/transcripts.tsv", f"a.flac\t{text}\n")
    save(tmp_path / "t/en/a.flac", clip(0.2))
    save(tmp_path / "m/m.jsonl", json.dumps({"audio_filepath": "a.flac", "text": text, "lang": "en"}, ensure_ascii=False) + "\n")
    save(tmp_path / "libri/1-2.trans.txt", f"1-2-0 {text}\n")
    save(tmp_path / "mls_german/train/transcripts.txt", f"1_2_3\t{text}\n")
    (tmp_path / "mls_german/train/audio").mkdir()
    (tmp_path / "cv/clips").mkdir(parents=True)
    save(tmp_path / "cv/train.tsv", f"path\tsentence\tlocale\na.mp3\t{text}\tde\n")
    for place in ("t", "m/m.jsonl", "libri", "mls_german/train", "cv"):
        assert transcripts(tmp_path / place) == [text], place


MARKED = ["\ufeffa\tö\r\nb\tc\r\n".encode(), "a\tö\nb\tc\n".encode("utf-16"), "\ufeffa\tö\nb\tc\n".encode("utf-16-be")]


@pytest.mark.parametrize("content", [*MARKED, "a\tö\rb\tc\r".encode()])
def test_marks_and_line_ends_are_understood(tmp_path, content):
    save(tmp_path / "x.tsv", content)
    assert read_lines(tmp_path / "x.tsv") == ["a\tö", "b\tc", ""]


def test_latin_1_is_named_with_its_line_and_never_guessed(tmp_path, capsys):
    save(tmp_path / "c/de/transcripts.tsv", "0.wav\tgut\n1.wav\tGrüße\n".encode("latin-1"))
    assert main(["pack", str(tmp_path / "c"), str(tmp_path / "s"), "--workers", "1"]) == 2
    assert "transcripts.tsv, line 2: byte 0xfc is no UTF-8. If" in capsys.readouterr().err


def test_a_field_may_be_longer_than_csv_allows(tmp_path):
    (tmp_path / "clips").mkdir()
    save(tmp_path / "train.tsv", "path\tsentence\tlocale\na.mp3\t" + "w" * 200_000 + "\ten\nb.mp3\n")
    assert [len(text) for text in transcripts(tmp_path)[:1]] == [200_000]


@pytest.mark.parametrize("layout", ["manifest", "transcripts", "mls", "librispeech", "commonvoice", "voxpopuli"])
def test_a_layout_that_is_not_there_is_a_sentence(tmp_path, layout, capsys):
    save(tmp_path / "corpus/readme.txt", "nothing")
    words = ["pack", str(tmp_path / "corpus"), str(tmp_path / "s"), "--layout", layout, "--language", "en", "--workers", "1"]
    assert main(words) == 2
    assert "Traceback" not in capsys.readouterr().err


def test_a_manifest_as_one_array_is_told_what_is_wanted(tmp_path):
    save(tmp_path / "m.json", json.dumps([{"audio_filepath": "a.wav", "text": "x", "lang": "en"}], indent=1))
    with pytest.raises(DataError, match="not one array"):
        find_recordings(tmp_path / "m.json")


@pytest.mark.parametrize("line", ["[" * 100_000, '{"a":' * 100_000, '{"audio_filepath": ' + "1" * 5000 + "}", "[1]"])
def test_a_line_that_is_no_object_is_named(tmp_path, line):
    save(tmp_path / "m.jsonl", line)
    with pytest.raises(DataError, match="line 1: wanted is audio_filepath and text"):
        find_recordings(tmp_path / "m.jsonl")


def test_a_table_without_its_columns_is_named(tmp_path):
    (tmp_path / "clips").mkdir()
    save(tmp_path / "train.tsv", "path\tlocale\na.mp3\tde\n")
    with pytest.raises(DataError, match=r"train\.tsv has no columns path and sentence"):
        find_recordings(tmp_path)
