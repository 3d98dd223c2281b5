"""Files, folders, standard input and formats that need ffmpeg; and a warning for pieces far longer than trained."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

from kappaspeech.errors import DataError
from kappaspeech.evaluation.recordings import find_audio, read_audio, warn_of_length
from kappaspeech.speech.samples import SAMPLE_RATE_HZ, cut_at_pauses


def write(path: Path, seconds: float = 1.0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, 0.1 * np.sin(np.arange(int(SAMPLE_RATE_HZ * seconds)) / 20), SAMPLE_RATE_HZ)
    return path


def test_a_folder_stands_for_the_audio_below_it(tmp_path):
    inside = [write(tmp_path / "a/2.flac"), write(tmp_path / "a/b/1.WAV")]
    (tmp_path / "a/notes.txt").write_text("no audio")
    # macOS's, beside what it copies
    (tmp_path / "a/._2.flac").write_bytes(b"\0\5\x16\7")
    alone = write(tmp_path / "z.flac")
    assert find_audio([alone, tmp_path / "a", Path("-")]) == [alone, *inside, Path("-")]


def test_a_folder_without_audio_is_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("no audio")
    with pytest.raises(DataError, match="has no audio files"):
        find_audio([tmp_path])


def test_standard_input_is_a_recording(tmp_path, monkeypatch):
    content = write(tmp_path / "a.flac", 0.5).read_bytes()
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))
    assert len(read_audio(Path("-"))) == SAMPLE_RATE_HZ // 2
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"no audio")))
    with pytest.raises(DataError, match="Standard input can't be used as audio") as caught:
        read_audio(Path("-"))
    assert "BytesIO" not in str(caught.value)


def test_a_format_that_needs_ffmpeg_says_so_without_it(tmp_path, monkeypatch):
    (tmp_path / "a.m4a").write_bytes(b"\0" * 100)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(DataError, match="which needs ffmpeg, and ffmpeg isn't installed"):
        read_audio(tmp_path / "a.m4a")


def test_ffmpeg_is_asked_for_a_local_file_alone(tmp_path, monkeypatch):
    sound = write(tmp_path / "sound.wav", 0.25)
    program = tmp_path / "ffmpeg"
    program.write_text(f'#!/bin/sh\nprintf "%s\\n" "$@" > {tmp_path}/words\ncat {sound}\n')
    program.chmod(0o755)
    (tmp_path / "-y.m4a").write_bytes(b"\0")
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.chdir(tmp_path)
    assert len(read_audio(Path("-y.m4a"))) == SAMPLE_RATE_HZ // 4
    words = (tmp_path / "words").read_text().splitlines()
    assert "file:-y.m4a" in words
    assert words[words.index("-protocol_whitelist") + 1] == "file,pipe"


def test_pieces_are_as_short_as_asked_for():
    waveform = np.float32(np.random.default_rng(0).normal(size=20 * SAMPLE_RATE_HZ))
    pieces = cut_at_pauses(waveform, longest_seconds=7.0)
    assert max(map(len, pieces)) <= 7 * SAMPLE_RATE_HZ
    assert len(pieces) > 2
    assert np.array_equal(np.concatenate(pieces), waveform)


def test_pieces_far_longer_than_trained_are_warned_of(tmp_path):
    # the micro-batch of most padded seconds holds shorter clips than the longest
    plan = {"assumptions": {"batches": {"largest": {"clip_seconds": 2.0}, "longest_seconds": 4.0}}}
    (tmp_path / "run.json").write_text(json.dumps({"schema_version": 1, "status": "finished", "plan": plan}))
    assert warn_of_length(tmp_path, 5.9) is None
    warning = warn_of_length(tmp_path, 24.0)
    assert warning is not None
    assert "clips of at most about 4.0 s" in warning
    assert "--piece-seconds 4" in warning
    assert warn_of_length(tmp_path / "an export", 24.0) is None
    (tmp_path / "run.json").write_text(json.dumps({"schema_version": 1, "status": "finished", "plan": {"error": "none"}}))
    assert warn_of_length(tmp_path, 24.0) is None


def test_nothing_is_said_where_a_plan_knew_no_lengths(tmp_path):
    batches = {"largest": {"clip_seconds": 2.0}, "longest_seconds": None, "source": "the batch budget, filled"}
    record = {"schema_version": 1, "status": "finished", "plan": {"assumptions": {"batches": batches}}}
    (tmp_path / "run.json").write_text(json.dumps(record))
    assert warn_of_length(tmp_path, 24.0) is None
