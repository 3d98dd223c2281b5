"""Shards of several corpora in one folder, and what the report says of them."""

from __future__ import annotations

import io
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile

from kappaspeech.commands import main
from kappaspeech.errors import DataError
from kappaspeech.speech import packing
from kappaspeech.speech.layouts import find_recordings
from kappaspeech.speech.packing import pack
from kappaspeech.speech.recordings import Recording
from kappaspeech.speech.samples import decode
from kappaspeech.speech.shard_claims import SOURCE_SUFFIX, source_digest
from kappaspeech.speech.shards import read_index
from tests.speech_files import clip, save


def libri(root: Path, first: int, count: int = 3) -> Path:
    names = [f"{first}-7-{number:04d}" for number in range(count)]
    save(root / f"{first}/7/{first}-7.trans.txt", "".join(f"{name} WORD {name}\n" for name in names))
    for number, name in enumerate(names):
        save(root / f"{first}/7/{name}.flac", clip(0.5, seed=first + number))
    return root


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.glob("*.tar"))}


def run(source: Path, output: Path, *words: str) -> int:
    return main(["pack", str(source), str(output), "--workers", "1", *words])


@pytest.fixture
def corpora(tmp_path) -> tuple[Path, Path]:
    return libri(tmp_path / "clean-100", 1), libri(tmp_path / "clean-360", 2)


def test_shards_of_another_corpus_are_not_replaced(corpora, tmp_path, capsys):
    first, second = corpora
    assert run(first, tmp_path / "shards") == 0
    before = contents(tmp_path / "shards")
    assert run(second, tmp_path / "shards") == 2
    said = capsys.readouterr().err
    assert f"{tmp_path}/shards/en-000000.tar is of {first}" in said
    assert "--prefix" in said
    assert contents(tmp_path / "shards") == before


def test_shards_that_were_made_elsewhere_are_not_replaced(corpora, tmp_path):
    save(tmp_path / "shards/en-000000.tar", b"something of value")
    with pytest.raises(DataError, match="of an unknown one"):
        pack(find_recordings(corpora[0]), tmp_path / "shards", shard_size=10, num_processes=1)
    assert contents(tmp_path / "shards") == {"en-000000.tar": b"something of value"}


def test_with_a_prefix_corpora_share_a_folder_and_a_report(corpora, tmp_path):
    first, second = corpora
    assert run(first, tmp_path / "shards") == 0
    before = contents(tmp_path / "shards")
    assert run(second, tmp_path / "shards", "--prefix", "clean360") == 0
    after = contents(tmp_path / "shards")
    assert set(after) == {"en-000000.tar", "clean360-en-000000.tar"}
    assert after["en-000000.tar"] == before["en-000000.tar"]
    report = json.loads((tmp_path / "shards/report.json").read_text())
    assert report["shards"] == ["clean360-en-000000.tar", "en-000000.tar"]
    assert report["languages"]["en"]["samples"] == 6
    keys = {s.key for path in (tmp_path / "shards").glob("*.tar") for s in read_index(str(path)).samples}
    assert {"en/1-7-0000", "clean360/en/2-7-0000"} <= keys


@pytest.mark.parametrize("prefix", ["../x", "a/b", ".hidden", "", "a b"])
def test_a_prefix_is_no_path(corpora, tmp_path, prefix):
    with pytest.raises(DataError, match="prefix"):
        pack(find_recordings(corpora[0]), tmp_path / "shards", shard_size=10, num_processes=1, prefix=prefix)


def test_two_splits_of_one_corpus_are_two_corpora(tmp_path):
    for split, number in (("train-clean", 1), ("test-clean", 2)):
        libri(tmp_path / "libri" / split, number)
    assert run(tmp_path / "libri", tmp_path / "shards", "--split", "train") == 0
    before = contents(tmp_path / "shards")
    assert run(tmp_path / "libri", tmp_path / "shards", "--split", "test") == 2
    assert contents(tmp_path / "shards") == before


def test_a_corpus_that_is_cut_otherwise_leaves_no_mixture(corpora, tmp_path, capsys):
    source = corpora[0]
    assert run(source, tmp_path / "shards", "--shard-size", "1") == 0
    assert run(corpora[1], tmp_path / "shards", "--shard-size", "1", "--prefix", "other") == 0
    assert run(source, tmp_path / "shards", "--shard-size", "2") == 0
    assert "removed" in capsys.readouterr().out
    own = sorted((tmp_path / "shards").glob("en-*.tar"))
    assert [len(read_index(str(path)).samples) for path in own] == [2, 1]
    assert len(list((tmp_path / "shards").glob("other-en-*.tar"))) == 3


def test_shards_that_an_earlier_version_named_by_a_longer_code_make_no_mixture(corpora, tmp_path):
    assert run(corpora[0], tmp_path / "shards") == 0
    assert run(corpora[1], tmp_path / "shards", "--prefix", "other") == 0
    for path in [*(tmp_path / "shards").glob("en-*"), *(tmp_path / "shards").glob("other-en-*")]:
        path.rename(path.with_name(path.name.replace("en-0", "eng-0")))
    assert run(corpora[0], tmp_path / "shards") == 0
    assert sorted(contents(tmp_path / "shards")) == ["en-000000.tar", "other-eng-000000.tar"]


def test_a_shard_whose_recordings_are_gone_stays(corpora, tmp_path):
    source = corpora[0]
    assert run(source, tmp_path / "shards") == 0
    before = contents(tmp_path / "shards")
    for path in source.rglob("*.flac"):
        path.unlink()
    assert run(source, tmp_path / "shards", "--skip-bad") == 0
    assert contents(tmp_path / "shards") == before


def test_a_pack_that_was_killed_between_shard_and_index_goes_on(corpora, tmp_path):
    recordings = find_recordings(corpora[0])
    whole = pack(recordings, tmp_path / "shards", shard_size=2, num_processes=1)
    shard = Path(whole.shards[1].where)
    claim = shard.with_name(shard.name + SOURCE_SUFFIX)
    claim.write_text(json.dumps({**json.loads(claim.read_text()), "digest": None}))
    shard.write_bytes(b"half a sha")
    again = pack(recordings, tmp_path / "shards", shard_size=2, num_processes=1)
    assert [len(index.samples) for index in again.shards] == [2, 1]


def test_shards_of_a_version_that_named_no_corpus_are_made_again_or_left(corpora, tmp_path):
    first, second = corpora
    (shard,) = pack(find_recordings(first), tmp_path / "shards", shard_size=10, num_processes=1).shards
    claim = Path(shard.where + SOURCE_SUFFIX)
    claim.write_text(json.dumps({"digest": "of something else", "rejected": {}}))
    before = contents(tmp_path / "shards")
    with pytest.raises(DataError, match="of an unknown one"):
        pack(find_recordings(second), tmp_path / "shards", shard_size=10, num_processes=1)
    assert contents(tmp_path / "shards") == before
    pack(find_recordings(first), tmp_path / "shards", shard_size=10, num_processes=1)
    assert json.loads(claim.read_text())["corpus"] == str(first)


def test_the_report_is_the_same_whenever_it_is_made(tmp_path):
    source = libri(tmp_path / "corpus", 1)
    save(source / "1/7/1-7-0001.flac", b"no audio")
    reports = []
    for name in ("a", "b"):
        assert run(source, tmp_path / name, "--skip-bad") == 0
        reports.append((tmp_path / name / "report.json").read_text())
    assert reports[0] == reports[1]
    assert "0x" not in reports[0]
    assert "flac, wav, mp3, opus, ogg" in reports[0]


def test_a_missing_file_is_left_out_by_choice_and_named(tmp_path, capsys):
    save(tmp_path / "corpus/en/transcripts.tsv", "gone.flac\thello\nhere.flac\tworld\n")
    save(tmp_path / "corpus/en/here.flac", clip(0.5))
    assert run(tmp_path / "corpus", tmp_path / "shards") == 2
    assert "line 1 names gone.flac" in capsys.readouterr().err
    assert run(tmp_path / "corpus", tmp_path / "shards", "--skip-bad") == 0
    assert "gone.flac: missing" in capsys.readouterr().out
    assert json.loads((tmp_path / "shards/report.json").read_text())["languages"]["en"]["samples"] == 1


@pytest.mark.parametrize("text", [None, 5, ["a"], {"a": 1}, "\ud800"])
def test_only_a_text_is_a_transcript(tmp_path, text, capsys):
    save(tmp_path / "a.flac", clip(0.5))
    rows = [{"audio_filepath": "a.flac", "text": t, "lang": "en"} for t in ("good", text)]
    save(tmp_path / "m.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    assert run(tmp_path / "m.jsonl", tmp_path / "shards") == 2
    assert "line 2: the text can't be used" in capsys.readouterr().err
    assert run(tmp_path / "m.jsonl", tmp_path / "shards", "--skip-bad") == 0
    assert [s.key for s in read_index(str(tmp_path / "shards/en-000000.tar")).samples] == ["en/00000001-a"]


@pytest.mark.parametrize(
    ("seconds", "listed", "cause"),
    [(1.0, 4.0, "truncated"), (3.0, 1.0, "length"), (1.0, 1.0, None), (1.4, 1.0, None), (1.0, "1.0", None), (1.0, None, None)],
)
def test_a_files_length_is_what_the_manifest_says(tmp_path, seconds, listed, cause):
    save(tmp_path / "a.flac", clip(seconds))
    save(tmp_path / "m.jsonl", json.dumps({"audio_filepath": "a.flac", "text": "x", "lang": "en", "duration": listed}))
    recordings = find_recordings(tmp_path / "m.jsonl")
    if cause is None:
        (shard,) = pack(recordings, tmp_path / "shards", shard_size=10, num_processes=1).shards
        assert shard.samples[0].seconds == pytest.approx(seconds)
    else:
        with pytest.raises(DataError, match=f"{cause}: .*the list says"):
            pack(recordings, tmp_path / "shards", shard_size=10, num_processes=1)


@pytest.mark.parametrize("value", ["abc", float("nan"), -1, float("inf"), [1], True, 10**400])
@pytest.mark.parametrize("name", ["duration", "offset"])
def test_a_manifests_times_are_seconds(tmp_path, name, value):
    save(tmp_path / "m.jsonl", json.dumps({"audio_filepath": "a.flac", "text": "x", "lang": "en", "offset": 0, name: value}))
    with pytest.raises(DataError, match=f"line 1: {name} is .*wanted are seconds"):
        find_recordings(tmp_path / "m.jsonl")


def make_float_wav(peak: float) -> bytes:
    buffer = io.BytesIO()
    wave = peak * np.sin(np.arange(16_000) / 9)
    soundfile.write(buffer, wave.astype(np.float32), 16_000, format="WAV", subtype="FLOAT")
    return buffer.getvalue()


def test_floats_in_the_scale_of_integers_are_refused_and_an_overshoot_keeps_its_shape(tmp_path):
    for name, peak in (("scale", 32_000.0), ("over", 1.5)):
        save(tmp_path / name / "en/a.wav", make_float_wav(peak))
        save(tmp_path / name / "en/transcripts.tsv", "a.wav\thello\n")
    with pytest.raises(DataError, match="scale: samples reach 32000"):
        pack(find_recordings(tmp_path / "scale"), tmp_path / "s", shard_size=10, num_processes=1)
    (shard,) = pack(find_recordings(tmp_path / "over"), tmp_path / "o", shard_size=10, num_processes=1).shards
    (entry,) = shard.samples
    content = Path(shard.where).read_bytes()[entry.audio_offset : entry.audio_offset + entry.audio_bytes]
    packed, _ = soundfile.read(io.BytesIO(content))
    np.testing.assert_allclose(packed, np.sin(np.arange(16_000) / 9), atol=1e-3)


@pytest.mark.parametrize("kind", ["pipe", "folder", "device"])
def test_what_is_no_file_is_no_recording(tmp_path, kind):
    path = {"pipe": tmp_path / "a.flac", "folder": tmp_path / "b.flac", "device": Path("/dev/zero")}[kind]
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    save(tmp_path / "m.jsonl", json.dumps({"audio_filepath": str(path), "text": "x", "lang": "en"}))
    with pytest.raises(DataError, match="and no file with an end"):
        pack(find_recordings(tmp_path / "m.jsonl"), tmp_path / "shards", shard_size=10, num_processes=1)


def test_a_moved_corpus_is_still_known(corpora, tmp_path):
    assert run(corpora[0], tmp_path / "shards") == 0
    before = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "shards").glob("*.tar")}
    shutil.move(corpora[0], tmp_path / "moved")
    assert run(tmp_path / "moved", tmp_path / "shards") == 0
    assert {path.name: path.stat().st_mtime_ns for path in (tmp_path / "shards").glob("*.tar")} == before


def test_a_shard_of_which_nothing_is_left_is_gone(corpora, tmp_path):
    """Else what an earlier call had packed would be trained on, though this one left it out."""
    output = tmp_path / "out"
    assert run(corpora[0], output) == 0
    assert list(output.glob("*.tar"))
    run(corpora[0], output, "--max-seconds", "0.2", "--skip-bad")
    assert not list(output.glob("*.tar"))
    assert not list(output.glob("*.index.json"))


def test_a_dataset_that_was_saved_again_in_its_folder_is_another_source(tmp_path):
    """Files that are written over leave the folder's own time as it is."""
    recording = Recording("de/0", tmp_path / "data", "ein Satz", "de", row=0)
    save(tmp_path / "data/data-00000-of-00001.arrow", b"audio")
    before = source_digest([recording], None)
    assert source_digest([recording], None) == before
    save(tmp_path / "data/data-00000-of-00001.arrow", b"other audio")
    assert source_digest([recording], None) != before


def test_a_file_of_which_parts_are_packed_is_decoded_once_and_the_shard_keeps_its_order(tmp_path, monkeypatch):
    lines = []
    for name in ("one", "two"):
        save(tmp_path / f"{name}.flac", clip(4.0, seed=len(lines)))
    for number in range(6):
        part = {"audio_filepath": f"{('one', 'two')[number % 2]}.flac", "offset": number / 2, "duration": 0.5}
        lines.append(json.dumps({**part, "text": f"part {number}", "lang": "en"}) + "\n")
    save(tmp_path / "m.jsonl", "".join(lines))
    recordings = find_recordings(tmp_path / "m.jsonl")
    (shard,) = pack(recordings, tmp_path / "shards", shard_size=10, num_processes=1).shards
    ((_, planned),) = packing._plan(recordings, tmp_path / "shards", shard_size=10, seed=0, prefix=None)
    assert [sample.key for sample in shard.samples] == [recording.key for recording in planned]
    decoded = []
    monkeypatch.setattr(packing, "decode", lambda content: decoded.append(content) or decode(content))
    packing._decode_file.cache_clear()
    for task in packing._tasks(planned):
        assert not any(item.cause for item in packing._encode_all(task, max_seconds=None))
    assert len(decoded) == 2
