"""Transcripts with times, in the formats that other programs read."""

from __future__ import annotations

import json

from kappaspeech.evaluation.transcripts import Segment, Transcript, to_json, to_srt, to_text

LONG = Transcript(
    "a.flac", (Segment(0.0, 3723.0015, "turn it on"), Segment(3723.0015, 3725.0, ""), Segment(3725.0, 3730.5, "off"))
)


def test_subtitles_have_times_to_the_millisecond_and_no_empty_entries():
    assert to_srt(LONG) == ("1\n00:00:00,000 --> 01:02:03,002\nturn it on\n\n2\n01:02:05,000 --> 01:02:10,500\noff\n\n")


def test_text_is_one_line_a_recording():
    assert to_text([LONG, Transcript("b.wav", ())]) == "a.flac\tturn it on off\nb.wav\t\n"


def test_what_a_model_writes_on_several_lines_stays_one_line_of_text_and_one_subtitle():
    poem = Transcript("a\tb\n.wav", (Segment(0.0, 1.0, "eins\n\nzwei\tdrei"),))
    assert to_text([poem]) == "a\\tb\\n.wav\teins zwei drei\n"
    assert to_srt(poem) == "1\n00:00:00,000 --> 00:00:01,000\neins zwei drei\n\n"
    assert json.loads(to_json([poem]))["recordings"][0]["text"] == "eins\n\nzwei\tdrei"


def test_json_has_every_segment():
    (recording,) = json.loads(to_json([LONG]))["recordings"]
    assert recording["text"] == "turn it on off"
    assert [segment["end_seconds"] for segment in recording["segments"]] == [3723.0015, 3725.0, 3730.5]


def test_no_control_character_of_a_name_or_a_text_ends_a_line_or_reaches_a_terminal():
    clip = Transcript("a\rb\x1b[2Jc\u2028d\udcff.wav", (Segment(0.0, 1.0, "eins\x1b[2J\x85zwei\u2029drei"),))
    assert to_text([clip]) == "a\\rb\\x1b[2Jc\\u2028d\\xff.wav\teins [2J zwei drei\n"
    assert to_srt(clip).splitlines()[2:] == ["eins [2J zwei drei", ""]
