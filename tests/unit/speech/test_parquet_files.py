"""Data sets of Parquet files, as the hub keeps them."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from pathlib import PurePath

import pyarrow
import pytest
from pyarrow import parquet

from kappaspeech.commands import main
from kappaspeech.errors import DataError
from kappaspeech.speech import parquet_rows
from kappaspeech.speech.layouts import find_recordings
from kappaspeech.speech.packing import _plan, _tasks
from kappaspeech.speech.parquet_files import split_of
from kappaspeech.speech.parquet_rows import read_parquet_row
from tests.speech_files import clip, save, write_parquet


@pytest.fixture(autouse=True)
def forget_files():
    """Tests write other files in the place of those before."""
    for function in (parquet_rows.open_parquet, parquet_rows._read_group):
        function.cache_clear()


@pytest.mark.parametrize(
    ("place", "split"),
    [
        ("data/train-00000-of-00004.parquet", "train"),
        ("data/validation-00000-of-00001-0123456789abcdef.parquet", "validation"),
        ("clean/train.100-00000-of-00014.parquet", "train.100"),
        ("default/train/0000.parquet", "train"),
        ("default/partial-train/0000.parquet", "train"),
        ("test.parquet", "test"),
        ("clips/0001.parquet", ""),
    ],
)
def test_a_file_names_its_split(place, split):
    assert split_of(PurePath(place)) == split


def test_held_out_files_are_packed_when_they_are_asked_for(tmp_path):
    for split in ("train-00000-of-00001", "test-00000-of-00001"):
        write_parquet(tmp_path / f"data/{split}.parquet", [(b"", split, "en")])
    assert [item.transcript for item in find_recordings(tmp_path)] == ["train-00000-of-00001"]
    assert [item.transcript for item in find_recordings(tmp_path, split="test")] == ["test-00000-of-00001"]
    # one file is what it says
    assert len(find_recordings(tmp_path / "data/test-00000-of-00001.parquet")) == 1
    with pytest.raises(DataError, match="has no split 'dev'; it has test, train"):
        find_recordings(tmp_path, split="dev")


def test_several_configurations_are_several_data_sets(tmp_path):
    for place in ("all/0000", "clean/train/0000", "clean/test/0000", "other/train.500-00000-of-00001"):
        write_parquet(tmp_path / f"{place}.parquet", [(b"", place, "en")])
    with pytest.raises(DataError, match=r"files in 3 folders \(all, clean, other\).*as in .*/other"):
        find_recordings(tmp_path)
    assert [item.transcript for item in find_recordings(tmp_path / "clean")] == ["clean/train/0000"]


def test_rows_of_a_group_stay_together_and_each_is_its_own(tmp_path):
    path = tmp_path / "train.parquet"
    write_parquet(path, [(bytes([n]), f"text {n}", "en") for n in range(23)], group_size=5)
    recordings = find_recordings(path)
    assert [recording.read() for recording in recordings] == [bytes([n]) for n in range(23)]
    ((_, order),) = _plan(recordings, tmp_path, shard_size=100, seed=0, prefix=None)
    groups = [recording.block for recording in order]
    assert sorted(groups[::5]) != groups[::5]
    assert sum(a != b for a, b in itertools.pairwise(groups)) == 4
    # a group is read once while its rows are asked for in a row
    before = parquet_rows._read_group.cache_info().misses
    assert {recording.read() for recording in order} == {bytes([n]) for n in range(23)}
    assert parquet_rows._read_group.cache_info().misses - before <= 5


def test_a_column_of_text_is_named(tmp_path):
    write_parquet(tmp_path / "train.parquet", [(b"x", "said", "en")], text="utterance")
    with pytest.raises(DataError, match=r"it has audio, utterance, locale. Name one of these with --text-column"):
        find_recordings(tmp_path)
    assert find_recordings(tmp_path, text_column="utterance")[0].transcript == "said"
    with pytest.raises(DataError, match=r"no column of text \(sentence\)"):
        find_recordings(tmp_path, text_column="sentence")


def test_a_layout_without_columns_has_none_to_choose(tmp_path):
    save(tmp_path / "en/transcripts.tsv", "a.flac\ttext\n")
    save(tmp_path / "en/a.flac", clip(1.0))
    with pytest.raises(DataError, match="read as transcripts, has no columns"):
        find_recordings(tmp_path, text_column="text")


def test_a_language_held_as_a_class_has_its_name(tmp_path):
    audio = pyarrow.array(
        [{"bytes": b"x", "path": None}] * 2, pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())])
    )
    features = {"info": {"features": {"language": {"names": ["de", "en"], "_type": "ClassLabel"}}}}
    table = pyarrow.table({"clip": audio, "text": ["eins", "two"], "language": [0, 1]})
    parquet.write_table(table.replace_schema_metadata({"huggingface": json.dumps(features)}), tmp_path / "train.parquet")
    assert [item.language for item in find_recordings(tmp_path)] == ["de", "en"]


def test_faults_are_told_and_left_out_by_name(tmp_path, capsys):
    rows = [(clip(1.0), "good", "en"), (clip(1.0), None, "en"), (None, "no audio", "en"), (b"noise", "no sound", "en")]
    write_parquet(tmp_path / "train.parquet", rows)
    with pytest.raises(DataError, match=r"train.parquet \[1\]: the text can't be used: sentence is null"):
        find_recordings(tmp_path)
    words = ["pack", str(tmp_path), str(tmp_path / "shards"), "--workers", "1", "--skip-bad"]
    assert main(words) == 0
    said = capsys.readouterr().out
    assert "1 samples in 1 shards" in said
    for row, cause in ((1, "text: sentence is null"), (2, "No such file"), (3, "decode")):
        assert any(f"train.parquet [{row}]" in line and cause in line for line in said.splitlines()), said


@pytest.mark.parametrize("content", [b"", b"PAR1", b"PAR1" + b"x" * 100 + b"PAR1"])
def test_what_is_no_parquet_is_told(tmp_path, content):
    save(tmp_path / "train.parquet", content)
    with pytest.raises(DataError, match="can't be read as Parquet"):
        find_recordings(tmp_path)


def test_more_rows_than_bytes_hold_are_told(tmp_path):
    count = 300_000
    kind = pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())])
    table = {"audio": pyarrow.nulls(count, kind), "text": pyarrow.repeat("a", count), "language": pyarrow.repeat("en", count)}
    parquet.write_table(pyarrow.table(table), tmp_path / "train.parquet")
    with pytest.raises(DataError, match="300,000 rows can't lie in"):
        find_recordings(tmp_path)


def test_a_table_without_audio_is_told(tmp_path):
    parquet.write_table(pyarrow.table({"text": ["a"], "language": ["en"]}), tmp_path / "train.parquet")
    with pytest.raises(DataError, match=r"no column of audio.*it has text, language"):
        find_recordings(tmp_path)


def test_a_table_that_names_no_language_is_told(tmp_path):
    write_parquet(tmp_path / "whole.parquet", [(b"", "a", "en")])
    parquet.write_table(parquet.read_table(tmp_path / "whole.parquet").drop_columns(["locale"]), tmp_path / "train.parquet")
    with pytest.raises(DataError, match="names the language"):
        find_recordings(tmp_path / "train.parquet")


def test_audio_may_lie_in_a_file_beside(tmp_path):
    write_parquet(tmp_path / "train.parquet", [(None, "a", "en")])
    save(tmp_path / "0.flac", b"beside")
    assert read_parquet_row(tmp_path / "train.parquet", 0) == b"beside"


@pytest.mark.parametrize("place", ["../private.flac", "audio/../../private.flac", "{folder}/private.flac"])
def test_audio_outside_of_the_data_set_is_no_part_of_it(tmp_path, place):
    save(tmp_path / "private.flac", b"private")
    named = place.format(folder=tmp_path)
    kind = pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())])
    audio = pyarrow.array([{"bytes": None, "path": named}], kind)
    table = {"audio": audio, "text": ["a"], "language": ["en"]}
    (tmp_path / "set/audio").mkdir(parents=True)
    parquet.write_table(pyarrow.table(table), tmp_path / "set/train.parquet")
    with pytest.raises(OSError, match="outside of the data set"):
        read_parquet_row(tmp_path / "set/train.parquet", 0)


def test_a_row_group_is_encoded_by_one_process_and_files_by_a_few(tmp_path):
    write_parquet(tmp_path / "train.parquet", [(bytes([n]), f"text {n}", "en") for n in range(23)], group_size=5)
    rows = find_recordings(tmp_path / "train.parquet")
    files = [replace(row, block=None, key=f"file-{number}") for number, row in enumerate(rows[:19])]
    assert [len(task) for task in _tasks(rows)] == [5, 5, 5, 5, 3]
    assert [len(task) for task in _tasks([*files, *rows])] == [8, 8, 3, 5, 5, 5, 5, 3]
    dealt = [recording.key for task in _tasks([*rows, *files]) for recording in task]
    assert sorted(dealt) == sorted(recording.key for recording in [*rows, *files])
