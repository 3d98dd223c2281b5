"""Samples of remote shards prove that they are those that were indexed: a few at the start, each when it is read."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from kappaspeech.errors import DataError
from kappaspeech.speech.corpus import Corpus, SpeechDataset
from kappaspeech.speech.sample_reader import SampleReader
from kappaspeech.speech.samples import AudioSample
from kappaspeech.speech.shard_indexing import index_shard
from kappaspeech.speech.shards import ShardIndex, digest_heads, read_index, write_index
from kappaspeech.speech.source import ReadOptions
from kappaspeech.speech.sources import open_source
from kappaspeech.speech.table import SampleTable, write_merged
from tests.speech_files import clip, details, make_tar
from tests.web import FaultyServer

QUICK = ReadOptions(attempts=3, stall_seconds=5.0)
TEXT = details(text="turn the lamp", language="en", duration=0.5)


@pytest.fixture
def shard(tmp_path) -> Path:
    """A dozen clips, in a folder of their own."""
    (tmp_path / "shards").mkdir()
    members = []
    for number in range(12):
        members += [(f"{number:02}.flac", clip(0.5, seed=number)), (f"{number:02}.json", TEXT)]
    made = make_tar(tmp_path / "shards" / "train.tar", members)
    write_index(index_shard(str(made)))
    return made


@pytest.fixture
def server(shard):
    with FaultyServer(shard.parent) as running:
        yield running


def replace_sample(shard: Path, number: int) -> None:
    """Change a sample's audio, and not its size."""
    place = read_index(str(shard)).samples[number].audio_offset + 100
    content = bytearray(shard.read_bytes())
    content[place] ^= 1
    shard.write_bytes(content)


def as_earlier_versions_indexed(shard: Path) -> ShardIndex:
    """Index a shard without a digest of each sample."""
    beside = Path(f"{shard}.index.json")
    content = json.loads(beside.read_text(encoding="utf-8"))
    del content["heads"]
    source = open_source(str(shard), QUICK)
    beside.write_text(json.dumps({**content, "digest": digest_heads(source, read_index(str(shard)).samples)}), encoding="utf-8")
    return read_index(str(shard))


def test_a_few_samples_of_a_remote_shard_are_looked_at_before_it_is_read(server, shard):
    index = read_index(f"{server.url}/{shard.name}", QUICK)
    looked_at = sum(
        any(path == f"/{shard.name}" and begin <= sample.audio_offset < end for path, begin, end in server.ranges)
        for sample in index.samples
    )
    assert looked_at == 4


@pytest.mark.parametrize("number", [0, -1])
def test_a_shard_that_begins_or_ends_with_another_sample_is_refused_at_the_start(server, shard, number):
    replace_sample(shard, number)
    with pytest.raises(DataError, match=f"{shard.name} holds other samples than when it was indexed"):
        Corpus(SpeechDataset(f"{server.url}/{shard.name}"), QUICK)


@pytest.mark.parametrize("is_cached", [False, True])
def test_a_sample_that_was_replaced_is_refused_when_it_is_read(server, shard, tmp_path, is_cached):
    read = ReadOptions(attempts=3, stall_seconds=5.0, cache_dir=str(tmp_path / "cache") if is_cached else None)
    replace_sample(shard, 1)
    corpus = Corpus(SpeechDataset(f"{server.url}/{shard.name}"), read)
    reader = SampleReader(read)
    assert isinstance(reader.read([corpus.ref(0)])[0], AudioSample)
    with pytest.raises(DataError, match=f"{shard.name} holds other samples than when it was indexed"):
        reader.read([corpus.ref(1)])


def test_an_answer_that_was_damaged_on_its_way_is_asked_for_again(server, shard):
    corpus = Corpus(SpeechDataset(f"{server.url}/{shard.name}"), QUICK)
    reader = SampleReader(QUICK)
    (expected,) = reader.read([corpus.ref(1)])
    server.faults = ["damaged"]
    (sample,) = reader.read([corpus.ref(1)])
    assert not server.faults
    assert isinstance(sample, AudioSample)
    assert isinstance(expected, AudioSample)
    assert sample.waveform.tobytes() == expected.waveform.tobytes()


def test_a_shard_that_an_earlier_version_indexed_is_compared_whole_at_the_start(server, shard):
    index = as_earlier_versions_indexed(shard)
    where = f"{server.url}/{shard.name}"
    corpus = Corpus(SpeechDataset(where), QUICK)
    assert all(isinstance(sample, AudioSample) for sample in SampleReader(QUICK).read([corpus.ref(0), corpus.ref(1)]))
    assert {sample.head_digest for sample in index.samples} == {0}
    replace_sample(shard, 1)
    with pytest.raises(DataError, match="holds other samples than when it was indexed"):
        Corpus(SpeechDataset(where), QUICK)


def test_shards_that_earlier_versions_indexed_go_into_one_index_with_others(server, shard, tmp_path):
    other = Path(shutil.copy(shard, shard.parent / "other.tar"))
    shutil.copy(f"{shard}.index.json", f"{other}.index.json")
    as_earlier_versions_indexed(other)
    indices = [read_index(f"{server.url}/{path.name}", QUICK) for path in (shard, other)]
    write_merged(SampleTable.of(indices), tmp_path / "all.index")
    corpus = Corpus(SpeechDataset(str(tmp_path / "all.index")), QUICK)
    assert [corpus.entry(row) for row in range(corpus.num_samples)] == [*indices[0].samples, *indices[1].samples]
    last = corpus.num_samples - 1
    assert all(isinstance(sample, AudioSample) for sample in SampleReader(QUICK).read([corpus.ref(0), corpus.ref(last)]))
    # which samples there are is the same whatever the index noted of them
    earlier = as_earlier_versions_indexed(shard)
    assert SampleTable.of([earlier]).fingerprint == SampleTable.of(indices[:1]).fingerprint


@pytest.mark.parametrize("heads", [["00"], 7, [5] * 1000, ["zz" * 8], "heads"])
def test_digests_that_can_not_be_ones_are_refused(shard, heads):
    beside = Path(f"{shard}.index.json")
    content = json.loads(beside.read_text(encoding="utf-8"))
    if isinstance(heads, list) and len(heads) == 1000:
        heads = heads[: len(content["samples"])]
    beside.write_text(json.dumps({**content, "heads": heads}), encoding="utf-8")
    with pytest.raises(DataError, match="can't be understood"):
        read_index(str(shard))
