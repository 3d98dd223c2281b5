"""The clips of shards as an index lists them, and as the tar has them."""

from __future__ import annotations

from dataclasses import replace

import pytest

from kappaspeech.errors import DataError
from kappaspeech.speech.shard_audio import find_shards, list_members
from kappaspeech.speech.shard_indexing import index_shard
from kappaspeech.speech.shards import write_index
from tests.speech_files import clip, details, make_tar


def test_an_index_adds_lengths_and_languages_to_what_the_tar_has(tmp_path):
    members = [("b.flac", clip(0.5)), ("b.json", details(text="on", language="en")), ("a.flac", clip(0.25)), ("a.txt", b"off")]
    where = str(make_tar(tmp_path / "s.tar", members))
    bare = list_members(where)
    assert [(member.key, member.kind, member.seconds, member.language) for member in bare] == [
        ("b", "flac", 0, ""),
        ("a", "flac", 0, ""),
    ]
    write_index(index_shard(where, default_language="de"))
    indexed = list_members(where)
    assert [(member.key, member.seconds, member.language) for member in indexed] == [("b", 0.5, "en"), ("a", 0.25, "de")]
    assert [replace(member, kind="", seconds=0.0, language="") for member in indexed] == [
        replace(member, kind="") for member in bare
    ]
    assert find_shards(f"{tmp_path}/*.tar") == [where]


def test_a_tar_without_audio_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"holds no audio \(flac"):
        list_members(str(make_tar(tmp_path / "s.tar", [("a.txt", b"on")])))
