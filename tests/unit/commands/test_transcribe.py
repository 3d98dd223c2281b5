"""`kappaspeech transcribe` of many clips: a line each, gone on with after a cut, refused where it would mix two models."""

from __future__ import annotations

import json
import re
import shutil

import pytest

from kappaspeech.commands import main
from kappaspeech.evaluation.clips import ClipReader
from kappaspeech.trained import opening
from tests.made_exports import make_export

pytestmark = pytest.mark.usefixtures("on_one_thread")


@pytest.fixture(scope="module")
def export(home, tmp_path_factory):
    return make_export(tmp_path_factory.mktemp("exported") / "export", home)


@pytest.fixture
def clips(home, tmp_path):
    """A folder of recordings, the third of which is broken."""
    folder = tmp_path / "clips"
    shutil.copytree(home / "speech/test", folder)
    (folder / "de/001.flac").write_bytes(b"no audio")
    return folder


def transcribe(model, *words, tokens=6) -> int:
    return main(["transcribe", str(model), *map(str, words), "--batch-size", "2", "--max-new-tokens", str(tokens)])


def read(path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def numbers_aside(line: dict) -> dict:
    """A line without its confidences."""
    segments = [{key: value for key, value in part.items() if key != "confidence"} for part in line.get("segments", [])]
    return {key: value for key, value in line.items() if key != "confidence"} | {"segments": segments}


def test_a_line_each_in_order_with_its_error_or_its_text_and_the_speed_at_the_end(export, clips, tmp_path, capsys):
    path = tmp_path / "out.jsonl"
    assert transcribe(export, clips, "--format", "jsonl", "--output", path) == 1
    printed = capsys.readouterr()
    assert printed.out == f"{path}\n"
    assert "s of speech in" in printed.err
    assert "real-time factor" in printed.err
    assert "1 of 6 recordings can't be read" in printed.err
    lines = read(path)
    names = [str(clips / f"{language}/{number:03d}.flac") for language in ("de", "en") for number in range(3)]
    assert [line["recording"] for line in lines] == names
    broken = lines.pop(1)
    assert broken.keys() == {"recording", "error"}
    assert "001.flac can't be used as audio" in broken["error"]
    assert len({line["text"] for line in lines}) > 2, "texts that are all alike would prove nothing"
    assert all(0 < line["confidence"] <= 1 and line["seconds"] > 0.3 for line in lines)
    record = json.loads((tmp_path / "out.job.json").read_text())
    assert record["is_finished"]
    assert record["real_time_factor"] == pytest.approx(record["decode_seconds"] / record["decoded_audio_seconds"], rel=1e-2)
    assert (record["num_ranks"], record["model"]) == (1, str(export))
    # the same texts as in the other formats, but for what a terminal would obey
    assert transcribe(export, clips) == 1
    printed = capsys.readouterr()
    texts = [re.sub("[\x00-\x1f\x7f-\x9f]+", " ", line["text"]) for line in lines]
    assert printed.out.splitlines() == [f"{line['recording']}\t{text}" for line, text in zip(lines, texts, strict=True)]
    assert "de/001.flac can't be used as audio" in printed.err


def test_a_job_that_was_cut_decodes_what_is_missing_alone(export, clips, tmp_path):
    path = tmp_path / "out.jsonl"
    words = [clips, "--format", "jsonl", "--output", path]
    assert transcribe(export, *words) == 1
    whole = path.read_bytes()
    place = whole.index(b"\n", whole.index(b"\n", whole.index(b"\n") + 1) + 1) + 1
    path.write_bytes(whole[: place + 25])
    assert transcribe(export, *words) == 1
    lines, expected = read(path), [json.loads(line) for line in whole.splitlines()]
    # the rest of a group that was cut is another batch, which rounds otherwise
    assert [numbers_aside(line) for line in lines] == [numbers_aside(line) for line in expected]
    known = [[line["confidence"] for line in part if "confidence" in line] for part in (lines, expected)]
    assert len(known[0]) == 5
    assert known[0] == pytest.approx(known[1], rel=1e-4)
    record = json.loads((tmp_path / "out.job.json").read_text())
    left = sum(line["seconds"] for line in read(path)[3:])
    assert record["decoded_audio_seconds"] == pytest.approx(left, abs=1e-3)
    assert record["audio_seconds"] > left + 0.3
    # and a job that is whole decodes nothing
    after = path.read_bytes()
    assert transcribe(export, *words) == 1
    assert path.read_bytes() == after
    assert json.loads((tmp_path / "out.job.json").read_text()) == record


def test_an_output_of_another_model_or_of_other_options_is_refused(export, clips, home, tmp_path, capsys):
    path = tmp_path / "out.jsonl"
    words = [clips / "en", "--format", "jsonl", "--output", path]
    assert transcribe(export, *words) == 0
    before = path.read_bytes()
    other = make_export(tmp_path / "other", home, loudness=10)
    for model, tokens, more, complaint in (
        (other, 6, [], "was made with model_digest"),
        (export, 5, [], "was made with max_new_tokens 6, and now it is 5"),
        (export, 6, ["--piece-seconds", "3"], "was made with piece_seconds 24.0, and now it is 3.0"),
        (export, 6, ["--num-beams", "2"], "was made with num_beams None, and now it is 2"),
        (export, 6, ["--instruction", "Translate. {audio}"], "was made with instruction None"),
        (export, 6, [clips / "de/000.flac"], None),
    ):
        assert transcribe(model, *words, *more, tokens=tokens) == (0 if complaint is None else 2)
        if complaint is not None:
            assert complaint in capsys.readouterr().err
            assert path.read_bytes() == before
    assert read(path)[-1]["recording"].endswith("de/000.flac")


def test_a_job_with_hot_words_is_not_gone_on_with_without_them(export, clips, tmp_path, capsys):
    path, job = tmp_path / "out.jsonl", tmp_path / "out.job.json"
    words = [clips / "en", "--format", "jsonl", "--output", path]
    assert transcribe(export, *words) == 0
    job.write_text(json.dumps({**json.loads(job.read_text()), "hot_words": ["Ludwig"]}))
    assert transcribe(export, *words) == 2
    assert "was made with hot_words ['Ludwig'], and now it is None" in capsys.readouterr().err


def test_lines_are_printed_where_no_output_is_named_and_shards_and_manifests_are_taken(export, home, tmp_path, capsys):
    manifest = tmp_path / "m.jsonl"
    clip = home / "speech/test/en/000.flac"
    entries = [{"audio_filepath": str(clip), "lang": "en"}, {"audio_filepath": str(clip), "offset": 0.1, "duration": 0.2}]
    manifest.write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    assert transcribe(export, home / "shards/test/*.tar", manifest, "--format", "jsonl") == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert len(lines) == 8
    assert [line["language"] for line in lines] == ["de"] * 3 + ["en"] * 4 + [None]
    assert lines[7]["recording"] == f"{clip}#t=0.1,0.3"
    assert lines[7]["seconds"] == 0.2
    # a packed clip is the clip
    assert lines[6]["text"] in {line["text"] for line in lines[3:6]}


def test_ranks_are_not_started_by_a_rank(export, clips, monkeypatch, capsys):
    monkeypatch.setenv("RANK", "0")
    assert transcribe(export, clips, "--nproc", "2") == 2
    assert "already one that a launcher started" in capsys.readouterr().err


@pytest.mark.parametrize("format_", ["text", "json", "jsonl"])
def test_the_checkpoint_is_chosen_once_before_a_recording_is_read(export, clips, tmp_path, monkeypatch, format_):
    """Reading may take long, and a run that still trains saves another one meanwhile."""
    done = []
    pin, read_ahead = opening.pin_step, ClipReader.read_ahead
    monkeypatch.setattr(opening, "pin_step", lambda *words: done.append("chosen") or pin(*words))
    monkeypatch.setattr(ClipReader, "read_ahead", lambda *words: done.append("read") or read_ahead(*words))
    assert transcribe(export, clips / "en/000.flac", "--format", format_, "--output", tmp_path / "out") == 0
    assert done[0] == "chosen"
    assert done.count("chosen") == 1
    # lines are read as they are decoded
    assert ("read" in done) == (format_ != "jsonl")
