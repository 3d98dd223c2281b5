"""Tarred data sets of NeMo."""

from __future__ import annotations

import json

import numpy as np
import pytest

from kappaspeech.errors import DataError
from kappaspeech.speech.layouts import find_recordings
from kappaspeech.speech.nemo_tars import is_nemo_tars
from kappaspeech.speech.packing import _cut
from kappaspeech.speech.samples import decode
from tests.speech_files import clip, save, write_nemo_tars


def test_one_manifest_of_all_tars_says_the_same_as_one_of_each(tmp_path):
    write_nemo_tars(tmp_path)
    shards = sorted((tmp_path / "sharded_manifests").iterdir())
    of_each = find_recordings(tmp_path)
    save(tmp_path / "tarred_audio_manifest.json", "".join(path.read_text() for path in shards))
    of_all = find_recordings(tmp_path)
    for name in ("path", "member", "transcript", "language", "begin_seconds", "seconds"):
        assert [getattr(item, name) for item in of_each] == [getattr(item, name) for item in of_all]
    # a manifest alone, of one tar
    assert [item.transcript for item in find_recordings(shards[1])] == ["zwei"]


def test_parts_of_a_file_are_its_own_samples(tmp_path):
    write_nemo_tars(tmp_path)
    parts = [_cut(item, None) for item in find_recordings(tmp_path) if "long" in item.key]
    np.testing.assert_array_equal(np.concatenate(parts), decode(clip(2.0, seed=1)))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"shard_id": 7}, "shard_id 7, and there is none"),
        ({"shard_id": "x"}, "shard_id x, and there is none"),
        ({"audio_filepath": "gone.flac"}, r"gone.flac isn't in .*audio_1.tar"),
    ],
)
def test_what_lies_in_no_tar_is_told_or_left_out(tmp_path, change, says):
    write_nemo_tars(tmp_path)
    entry = {"audio_filepath": "b_two.flac", "duration": 1.0, "text": "zwei", "lang": "de", "shard_id": 1, **change}
    save(tmp_path / "sharded_manifests/manifest_1.json", json.dumps(entry) + "\n")
    with pytest.raises(DataError, match=says):
        find_recordings(tmp_path)
    kept = find_recordings(tmp_path, keeps_faults=True)
    assert [item.fault is not None for item in kept] == [False, False, False, True]


def test_a_damaged_tar_and_a_split_are_told(tmp_path):
    write_nemo_tars(tmp_path)
    with pytest.raises(DataError, match="no splits"):
        find_recordings(tmp_path, split="dev")
    save(tmp_path / "audio_1.tar", b"x" * 700)
    with pytest.raises(DataError, match=r"audio_1.tar can't be read as a tar"):
        find_recordings(tmp_path)


def test_two_tars_of_one_number_are_told(tmp_path):
    write_nemo_tars(tmp_path)
    save(tmp_path / "audio_1_before.tar", (tmp_path / "audio_0.tar").read_bytes())
    with pytest.raises(DataError, match=r"audio_1_before.tar and audio_1.tar both have the number 1"):
        find_recordings(tmp_path)


def test_a_manifest_of_plain_files_is_none_of_tars(tmp_path):
    save(tmp_path / "train.jsonl", json.dumps({"audio_filepath": "a.flac", "text": "a", "lang": "en"}) + "\n")
    save(tmp_path / "a.flac", clip(1.0))
    assert not is_nemo_tars(tmp_path / "train.jsonl")
    assert not is_nemo_tars(tmp_path)
    assert find_recordings(tmp_path / "train.jsonl")[0].path == tmp_path / "a.flac"
