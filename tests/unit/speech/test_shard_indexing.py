"""Making a shard's index from its tar, whole and damaged."""

from __future__ import annotations

import pytest

from kappaspeech.errors import DataError
from kappaspeech.speech.corpus import SpeechDataset
from kappaspeech.speech.held_out import read_test_batches
from kappaspeech.speech.shard_indexing import index_shard
from kappaspeech.speech.shards import write_index
from tests.speech_files import clip, details, make_tar


def audio(seconds: float = 0.5) -> bytes:
    return clip(seconds)


@pytest.mark.parametrize(
    ("members", "complaint"),
    [
        ([("a.flac", audio()), ("a.txt", b"x")], "names no language"),
        ([("a.flac", audio()), ("a.json", details(language="en"))], "no transcript"),
        ([("a.txt", b"x"), ("a.json", details(language="en"))], "no audio"),
        ([("a.flac", audio()), ("a.flac", audio()), ("a.json", details(text="x", language="en"))], "twice"),
        ([("a.flac", b"junk"), ("a.json", details(text="x", language="en"))], "can't be decoded"),
        ([("a.flac", audio()), ("a.json", b"{")], "can't be parsed"),
        ([], "no sample"),
    ],
)
def test_a_shard_that_cannot_be_used_says_why(tmp_path, members, complaint):
    path = make_tar(tmp_path / "x.tar", members)
    with pytest.raises(DataError, match=complaint):
        index_shard(str(path))


def test_a_file_that_is_no_tar_and_one_that_is_cut_are_refused(tmp_path):
    (tmp_path / "x.tar").write_bytes(b"this was never a tar file" * 100)
    with pytest.raises(DataError, match="no tar file"):
        index_shard(str(tmp_path / "x.tar"))
    whole = make_tar(tmp_path / "y.tar", [("a.flac", audio(3.0)), ("a.json", details(text="x", language="en"))])
    content = whole.read_bytes()
    whole.write_bytes(content[:20_000])
    with pytest.raises(DataError, match="cut"):
        index_shard(str(whole))


def test_keys_are_split_at_the_last_dot_and_text_is_found_in_its_places(tmp_path):
    members = [
        ("./spk.1.utt.flac", audio()),
        ("./spk.1.utt.json", details(sentence="hello", locale="en_US")),
        ("other.flac", audio()),
        ("other.txt", "grüß dich".encode()),
        ("other.json", details(language="German", duration=0.5)),
    ]
    shard = index_shard(str(make_tar(tmp_path / "x.tar", members)))
    write_index(shard)
    batches = read_test_batches([SpeechDataset(str(tmp_path / "x.tar"))], batch_size=2)
    read = {sample.key: (sample.transcript, sample.language) for batch in batches for sample in batch}
    assert read == {"spk.1.utt": ("hello", "en"), "other": ("grüß dich", "de")}
