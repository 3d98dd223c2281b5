"""The clips that a command line's words mean, and their audio."""

from __future__ import annotations

import json
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest
import soundfile

from kappaspeech.errors import DataError
from kappaspeech.evaluation.clips import Clip, ClipReader, find_clips
from kappaspeech.speech.samples import SAMPLE_RATE_HZ, read_recording
from kappaspeech.speech.shards import read_index
from kappaspeech.speech.table import SampleTable, write_merged

RATE = SAMPLE_RATE_HZ


def write(path: Path, seconds: float = 1.0, *, hertz: float = 300.0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, 0.1 * np.sin(2 * np.pi * hertz * np.arange(int(RATE * seconds)) / RATE), RATE)
    return path


def write_lines(path: Path, *entries: object) -> Path:
    path.write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    return path


def read_all(clips: list[Clip]) -> list[np.ndarray]:
    reader = ClipReader()
    return [reader.read(clip) for clip in clips]


def test_files_and_folders_come_in_order_and_once(tmp_path):
    a, b = write(tmp_path / "in/a.flac", 0.5), write(tmp_path / "in/b.wav", 1.5)
    clips = find_clips([str(b), str(tmp_path / "in"), str(a)])
    assert [clip.name for clip in clips] == [str(b), str(a)]
    assert [clip.seconds for clip in clips] == [1.5, 0.5]


def test_a_manifest_needs_neither_text_nor_language_and_names_parts_by_their_times(tmp_path):
    path = write(tmp_path / "a.flac", 3.0)
    manifest = write_lines(
        tmp_path / "m.jsonl",
        {"audio_filepath": "a.flac"},
        {"audio_filepath": str(path), "offset": 1, "duration": 0.5, "lang": "german"},
        {"audio_filepath": "a.flac", "offset": 2.25, "text": "on"},
    )
    clips = find_clips([str(manifest)])
    assert [clip.name for clip in clips] == [str(path), f"{path}#t=1,1.5", f"{path}#t=2.25"]
    assert [clip.language for clip in clips] == ["", "de", ""]
    assert [clip.seconds for clip in clips] == pytest.approx([3, 0.5, 0.75])
    whole = read_recording(path)
    found = read_all(clips)
    expected = [whole, whole[RATE : RATE + RATE // 2], whole[int(2.25 * RATE) :]]
    assert all(map(np.array_equal, found, expected))


def test_a_line_that_names_no_file_is_refused_with_its_number(tmp_path):
    manifest = write_lines(tmp_path / "m.jsonl", {"audio_filepath": "a.flac"}, {"text": "on"})
    with pytest.raises(DataError, match=r"line 2: wanted is audio_filepath; found"):
        find_clips([str(manifest)])


def test_what_a_list_names_wrongly_costs_itself_alone(tmp_path):
    write(tmp_path / "a.flac", 1.0)
    (tmp_path / "torn.flac").write_bytes(b"fLaC")
    (tmp_path / "pipe.wav").mkdir()
    manifest = write_lines(
        tmp_path / "m.json",
        {"audio_filepath": "gone.flac"},
        {"audio_filepath": "torn.flac"},
        {"audio_filepath": "a.flac", "duration": 7.0},
        {"audio_filepath": "a.flac", "offset": 0.5, "duration": 7.0},
        {"audio_filepath": "pipe.wav"},
        {"audio_filepath": "a\0.flac"},
    )
    reader = ClipReader()
    causes = (
        "gone.flac can't be read: No such file",
        "decode",
        "the list says 7.00 s",
        "truncated",
        "can't be read",
        "can't be read",
    )
    for clip, cause in zip(find_clips([str(manifest)]), causes, strict=True):
        with pytest.raises(DataError, match=cause):
            reader.read(clip)


@pytest.mark.parametrize(
    "content", ["a.flac\tturn it on\nb/c.flac\n", "id\tpath\n1\ta.flac\n2\tb/c.flac\n", "FILE\na.flac\nb/c.flac\n"]
)
def test_a_table_names_files_in_its_first_column_or_in_the_one_that_is_called_so(tmp_path, content):
    paths = [write(tmp_path / "en/a.flac"), write(tmp_path / "en/b/c.flac")]
    (tmp_path / "en/list.tsv").write_text(content)
    clips = find_clips([str(tmp_path / "en/list.tsv")])
    assert [clip.name for clip in clips] == list(map(str, paths))
    assert {clip.language for clip in clips} == {"en"}


@pytest.fixture
def shards(home, tmp_path):
    for path in (home / "shards/test").iterdir():
        shutil.copy(path, tmp_path)
    return sorted(str(path) for path in tmp_path.glob("*.tar"))


def test_shards_are_read_with_an_index_without_one_and_merged(shards, tmp_path, home):
    indexed = find_clips([str(tmp_path / "*.tar")])
    write_merged(SampleTable.of(list(map(read_index, shards))), tmp_path / "all.index")
    merged = find_clips([str(tmp_path / "all.index")])
    for path in tmp_path.glob("*.index.json"):
        path.unlink()
    bare = find_clips([str(tmp_path / "{de,en}-000000.tar")])
    names = [clip.name for clip in indexed]
    assert len(names) == 6
    assert names[0].startswith(f"{shards[0]}/de/")
    assert names == [clip.name for clip in merged] == [clip.name for clip in bare]
    assert {clip.language for clip in indexed} == {"de", "en"}
    assert {clip.language for clip in bare} == {""}
    waveforms = read_all(indexed)
    for others in (read_all(merged), read_all(bare)):
        assert all(map(np.array_equal, waveforms, others))
    spoken = [len(read_recording(path)) for path in (home / "speech/test").rglob("*.flac")]
    assert sorted(map(len, waveforms)) == sorted(spoken)


def test_shards_need_no_transcripts(tmp_path):
    with tarfile.open(tmp_path / "s.tar", "w") as tar:
        tar.add(write(tmp_path / "x.wav", 0.5), "x.wav")
        tar.add(write_lines(tmp_path / "y.json", {"speaker": 1}), "y.json")
    (clip,) = find_clips([str(tmp_path / "s.tar")])
    assert clip.name == f"{tmp_path}/s.tar/x"
    assert clip.seconds == pytest.approx(0.5, rel=0.01)
    assert len(ClipReader().read(clip)) == RATE // 2


def test_a_damaged_shard_is_one_clip_that_says_so_and_one_that_is_not_there_is_refused(shards, tmp_path):
    whole = Path(shards[0]).read_bytes()
    Path(shards[0]).write_bytes(whole[: len(whole) // 2])
    clips = find_clips([str(tmp_path / "*.tar")])
    assert clips[0].name == shards[0]
    assert len(clips) == 4
    with pytest.raises(DataError, match="is cut"):
        ClipReader().read(clips[0])
    with pytest.raises(DataError, match="No shard matches"):
        find_clips([str(tmp_path / "none-*.tar")])


def test_secrets_of_a_url_are_in_no_name(monkeypatch):
    monkeypatch.setattr("kappaspeech.evaluation.clips.find_shards", lambda pattern: [pattern])
    (clip,) = find_clips(["http://me:word@127.0.0.1:9/s.tar?signature=abc"])
    assert "word" not in clip.name + str(clip.source)
    assert "abc" not in clip.name + str(clip.source)


def test_what_was_read_ahead_is_read_once(tmp_path):
    path = write(tmp_path / "a.flac")
    (clip,) = find_clips([str(path)])
    reader = ClipReader()
    reader.read_ahead(clip)
    path.unlink()
    assert len(reader.read(clip)) == RATE
    with pytest.raises(DataError, match="no recording at"):
        reader.read(clip)
