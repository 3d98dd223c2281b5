"""Places for transcripts: the names of subtitles, and JSON on a standard output of any encoding."""

from __future__ import annotations

import io
import json
import sys

import pytest

from kappaspeech.commands.transcript_output import Format, Gathered, Printed, subtitle_names
from kappaspeech.evaluation.transcripts import Segment, Transcript

SAID = (Segment(0.0, 1.0, "öffne \x7f\x9b die Tür \U0001f600"),)


def names_of(*recordings: str) -> list[str]:
    return list(subtitle_names([Transcript(name, SAID) for name in recordings]))


def test_subtitles_are_named_by_their_recordings_and_numbered_if_these_are_of_one_name():
    assert names_of("in/a.wav", "in/b.c.flac", "-", "other/a.mp3", "a-2.wav", "a.wav") == [
        "a.srt",
        "b.c.srt",
        "-.srt",
        "a-2.srt",
        "a-2-2.srt",
        "a-3.srt",
    ]


def test_the_times_of_a_part_stay_in_the_name_of_its_subtitles():
    assert names_of("in/a.wav#t=0.5,1.25", "in/a.wav#t=0.5,1.25", "in/a.wav#t=3", "in/a#t=b.wav") == [
        "a#t=0.5,1.25.srt",
        "a#t=0.5,1.25-2.srt",
        "a#t=3.srt",
        "a#t=b.srt",
    ]


@pytest.mark.parametrize("name", ["x.tar/a#t=/../../escaped", "x.tar/..", "x.tar/a#t=1/b", "/in/#t=1/a.wav", "x.tar/dir/"])
def test_no_name_within_a_shard_or_of_a_folder_leads_out_of_the_output(name):
    assert all("/" not in file for file in names_of(name, name))


def test_a_name_as_long_as_file_systems_allow_leaves_room_for_times_and_number():
    long = "ö" * 125 + ".flac"
    names = names_of(f"in/{long}#t=0.5,1.25", f"other/{long}#t=0.5,1.25", f"in/{long}", "in/a#t=" + "9" * 300)
    assert all(len(name.encode()) <= 255 for name in names)
    assert names[0].endswith("ö#t=0.5,1.25.srt")
    assert names[1].endswith("ö#t=0.5,1.25-2.srt")


def test_subtitles_keep_their_names_once_a_recording_that_could_not_be_read_can(tmp_path, capsys):
    output = Gathered(Format.srt, tmp_path, into_folder=True)
    output.keep([Transcript("in/a.wav", (), error="in/a.wav can't be read."), Transcript("other/a.wav", SAID)])
    assert output.finish(None) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["a-2.srt"]
    assert capsys.readouterr().out == f"{tmp_path}/a-2.srt\n"


@pytest.mark.parametrize("encoding", ["utf-8", "latin-1", "ascii"])
@pytest.mark.parametrize("output", [Printed(), Gathered(Format.json, None, into_folder=False)], ids=["jsonl", "json"])
def test_what_is_printed_as_json_can_be_read_as_json(output, encoding, monkeypatch):
    stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding, errors="backslashreplace")
    monkeypatch.setattr(sys, "stdout", stream)
    output.keep([Transcript("in/b\x85c.wav", SAID)])
    output.finish(None)
    stream.flush()
    printed = json.loads(stream.buffer.getvalue().decode(encoding))
    found = printed["recordings"][0] if "recordings" in printed else printed
    assert (found["recording"], found["text"]) == ("in/b\x85c.wav", SAID[0].text)
