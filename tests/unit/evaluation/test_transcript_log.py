"""A log of transcripts: as its job leaves it, whole or cut, and gone on with or refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from kappaspeech.errors import InputError
from kappaspeech.evaluation.transcript_log import TranscriptLog
from kappaspeech.evaluation.transcripts import Segment, Transcript

NAMES = ["a.flac", "b.flac", "c \u2028.flac", "d.flac"]
MADE_BY = {"model_digest": "0" * 64, "max_new_tokens": 9}


def transcript(name: str) -> Transcript:
    if name == "b.flac":
        return Transcript(name, (), error="b.flac is torn")
    return Transcript(name, (Segment(0.0, 1.5, f"that is {name}", 0.5, "end", 2),), 1.5, "en")


def job(path, *, names=NAMES, count=99, **changes) -> int:
    """Go on with a job for `count` recordings; return how many were there before."""
    with TranscriptLog(path, made_by={**MADE_BY, **changes}, names=names) as log:
        before = log.num_done
        for name in names[before : before + count]:
            log.append([transcript(name)])
        log.finish(real_time_factor=2.0)
    return before


def lines(path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]


def test_a_line_says_what_was_heard_or_why_nothing_was(tmp_path):
    path = tmp_path / "out.jsonl"
    assert job(path) == 0
    first, second, third, _ = lines(path)
    assert first == {
        "recording": "a.flac",
        "text": "that is a.flac",
        "seconds": 1.5,
        "language": "en",
        "confidence": pytest.approx(0.5),
        "segments": [{"start_seconds": 0, "end_seconds": 1.5, "text": "that is a.flac", "confidence": 0.5, "ending": "end"}],
    }
    assert second == {"recording": "b.flac", "error": "b.flac is torn"}
    assert third["recording"] == NAMES[2]
    record = json.loads((tmp_path / "out.job.json").read_text())
    assert record["is_finished"]
    assert (record["num_recordings"], record["num_errors"], record["audio_seconds"]) == (4, 1, 4.5)
    assert record["real_time_factor"] == 2
    assert record["max_new_tokens"] == 9


@pytest.mark.parametrize("cut", [0, 1, 40, -1, -30, None])
def test_a_job_that_was_cut_anywhere_goes_on_to_the_same_file(tmp_path, cut):
    job(tmp_path / "whole.jsonl")
    whole = (tmp_path / "whole.jsonl").read_bytes()
    path = tmp_path / "cut.jsonl"
    job(path, count=3)
    left = path.read_bytes()[:cut]
    path.write_bytes(left)
    assert job(path) == left.count(b"\n")
    assert path.read_bytes() == whole
    assert json.loads((tmp_path / "cut.job.json").read_text())["num_errors"] == 1


def test_what_is_done_is_not_done_again(tmp_path):
    path = tmp_path / "out.jsonl"
    assert job(path, count=2) == 0
    assert not json.loads((tmp_path / "out.job.json").read_text())["is_finished"]
    assert job(path, count=1) == 2
    assert job(path) == 3
    assert job(path) == 4
    assert job(path, names=[*NAMES, "e.flac"]) == 4
    assert len(lines(path)) == 5


def test_what_was_measured_of_a_finished_job_stays(tmp_path):
    path = tmp_path / "out.jsonl"
    job(path)
    record = (tmp_path / "out.job.json").read_bytes()
    with TranscriptLog(path, made_by=MADE_BY, names=NAMES) as log:
        log.finish()
    assert (tmp_path / "out.job.json").read_bytes() == record
    # one that was killed between its last line and its end is finished now
    job(path, names=[*NAMES, "e.flac"], count=0)
    with TranscriptLog(path, made_by=MADE_BY, names=NAMES) as log:
        log.finish()
    assert json.loads((tmp_path / "out.job.json").read_text())["is_finished"]


def test_another_model_other_options_and_other_recordings_are_refused_and_nothing_is_changed(tmp_path):
    path = tmp_path / "out.jsonl"
    job(path, count=2)
    before = path.read_bytes(), (tmp_path / "out.job.json").read_bytes()
    for changes, complaint in (
        ({"model_digest": "1" * 64}, "was made with model_digest '0000"),
        ({"max_new_tokens": 10}, "was made with max_new_tokens 9, and now it is 10"),
        ({"names": ["a.flac", "x.flac"]}, r"line 2 is of b\.flac, .* it is x\.flac"),
        ({"names": ["a.flac"]}, r"line 2 is of b\.flac, .* there is none"),
    ):
        with pytest.raises(InputError, match=complaint):
            job(path, **changes)
    (tmp_path / "out.job.json").unlink()
    with pytest.raises(InputError, match=r"no out\.job\.json beside it says what made it"):
        job(path)
    assert path.read_bytes() == before[0]


@pytest.mark.parametrize("line", [b"no json", b"[]", b'{"recording": "a.flac"}', b'{"recording": 1, "error": ""}'])
def test_a_line_of_another_hand_is_refused_by_its_number(tmp_path, line):
    path = tmp_path / "out.jsonl"
    job(path, count=1)
    path.write_bytes(path.read_bytes() + line + b"\n")
    with pytest.raises(InputError, match="line 2 can't be read"):
        job(path)


def test_two_jobs_do_not_write_one_file(tmp_path):
    with TranscriptLog(tmp_path / "out.jsonl", made_by=MADE_BY, names=NAMES), pytest.raises(InputError, match="another process"):
        job(tmp_path / "out.jsonl")


def test_an_empty_file_is_begun(tmp_path):
    (tmp_path / "out.jsonl").touch()
    assert job(tmp_path / "out.jsonl") == 0
    # names that differ behind a dot have records of their own
    assert job(tmp_path / "out.2") == 0
    assert {path.name for path in tmp_path.glob("*.job.json")} == {"out.job.json", "out.2.job.json"}


def test_a_name_of_bytes_that_are_no_text_is_found_again(tmp_path):
    names = ["caf\udce9.flac"]
    assert job(tmp_path / "out.jsonl", names=names) == 0
    assert job(tmp_path / "out.jsonl", names=names) == 1


def test_a_device_is_written_through_and_has_nothing_beside_it():
    with TranscriptLog(Path("/dev/null"), made_by=MADE_BY, names=NAMES) as log:
        log.append([transcript("a.flac")])
        log.finish()
    assert log.num_done == 1


def test_a_full_disk_is_told_by_the_files_name(tmp_path):
    options = {"made_by": MADE_BY, "names": NAMES}
    with TranscriptLog(tmp_path / "out.jsonl", **options) as log, Path("/dev/full").open("wb", buffering=0) as full:
        log._file.close()
        log._file = full
        with pytest.raises(OSError, match="No space left") as caught:
            log.append([transcript("a.flac")])
    assert caught.value.filename == str(tmp_path / "out.jsonl")
