"""A job of many clips in one process: what is kept, what is gone on with, what is said."""

from __future__ import annotations

import pytest

from kappaspeech.evaluation.clip_job import Speed, run_job
from kappaspeech.evaluation.clips import ClipReader
from kappaspeech.ranks.cluster import SingleProcess
from tests.unit.evaluation.test_clip_groups import CLIPS
from tests.unit.evaluation.test_decoding import build

pytestmark = pytest.mark.usefixtures("on_one_thread")


@pytest.fixture(scope="module")
def transcriber(home):
    return build(home, scale=3)


def test_a_job_keeps_every_clip_in_order_tells_its_speed_and_warns_once(transcriber, monkeypatch, capsys):
    monkeypatch.setattr("kappaspeech.evaluation.clip_groups._BATCHES_A_GROUP", 1)
    rounds: list[list[str]] = []
    said: list[float] = []

    def warn(seconds: float) -> str | None:
        said.append(seconds)
        return "warning: long" if seconds > 2 else None

    options = {"cluster": SingleProcess(), "reader": ClipReader(), "longest_seconds": 24.0, "warn": warn}
    kept: list = []

    def keep(transcripts):
        rounds.append([item.recording for item in transcripts])
        kept.extend(transcripts)

    speed = run_job(CLIPS, transcriber, keep=keep, **options)
    assert rounds == [["a", "broken", "bcd"], ["ef", "ghij", "klmno"]]
    assert speed.audio_seconds == pytest.approx(sum(clip.seconds for clip in CLIPS))
    assert speed.decode_seconds > 0
    printed = capsys.readouterr().err
    assert printed.count("warning: long") == 1
    assert "transcribe 100%" in printed
    whole = list(kept)
    kept.clear()
    run_job(CLIPS, transcriber, keep=keep, num_done=3, **options)
    assert kept == whole[3:]


def test_the_real_time_factor_is_what_a_second_of_audio_takes():
    assert Speed(30.0, 2.0).real_time_factor == pytest.approx(1 / 15)
    assert Speed(0.0, 0.0).real_time_factor == 0
