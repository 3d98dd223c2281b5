from __future__ import annotations

import hashlib
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch

from kappaspeech.errors import DataError
from kappaspeech.speech.corpus import Corpus, SpeechDataset
from kappaspeech.speech.feature_cache import (
    CachedClip,
    FeatureCache,
    FeatureCacheOptions,
    StateSize,
    entry_name,
    from_bits,
    to_bits,
)
from kappaspeech.speech.loader_pool import LoaderPool
from kappaspeech.speech.loading import BadSample, LoadedSample, Loader, LoadOptions
from kappaspeech.speech.sample_reader import SampleRef
from kappaspeech.speech.shard_indexing import index_shard
from kappaspeech.speech.shards import SampleEntry, ShardStamp, write_index
from kappaspeech.speech.source import ReadOptions
from kappaspeech.speech.table import SampleTable, write_merged
from tests import speech_files, tiny
from tests.speech_files import details, make_tar
from tests.web import FaultyServer

ENTRY = SampleEntry("k", 1.0, "en", 512, 100, 1536, 10, False)
STAMP = ShardStamp(4096, "0", "a" * 64)
NAME = entry_name(ENTRY, STAMP, "none")


def test_a_name_does_not_hang_on_what_an_index_notes_of_a_samples_head():
    assert entry_name(replace(ENTRY, head_digest=5), STAMP, "none") == NAME


def options(folder: Path, *, namespace: str = "one", limit: int = 1 << 20) -> FeatureCacheOptions:
    return FeatureCacheOptions(str(folder), namespace, limit)


def clip(*, dtype: torch.dtype = torch.float32, states: int = 7) -> CachedClip:
    values = torch.randn(states, 4, generator=torch.Generator().manual_seed(states)).to(dtype)
    return CachedClip(to_bits(values), 2 * states, "grüne Tür")


def test_an_entry_that_an_earlier_version_kept_is_of_no_known_version_of_its_shard(tmp_path):
    cache = FeatureCache(options(tmp_path))
    cache.keep(NAME, replace(clip(), shard_stamp="v1"))
    assert cache.read(NAME).shard_stamp == "v1"
    (path,) = files(tmp_path)
    tensors = safetensors.torch.load(path.read_bytes()[32:])
    del tensors["shard_stamp"]
    body = safetensors.torch.save(tensors)
    path.write_bytes(hashlib.sha256(body).digest() + body)
    assert cache.read(NAME).shard_stamp == ""


def files(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.states"))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_clip_comes_back_bit_by_bit_to_another_process_cache(tmp_path, dtype):
    FeatureCache(options(tmp_path)).keep(NAME, clip(dtype=dtype))
    found = FeatureCache(options(tmp_path)).read(NAME)
    assert found is not None
    assert from_bits(found.states_SE).dtype == dtype
    assert torch.equal(from_bits(found.states_SE), from_bits(clip(dtype=dtype).states_SE))
    assert (found.num_frames, found.transcript) == (14, "grüne Tür")


def test_a_name_stands_for_sample_shard_and_normalisation():
    others = [
        entry_name(replace(ENTRY, audio_bytes=101), STAMP, "none"),
        entry_name(ENTRY, replace(STAMP, digest="b" * 64), "none"),
        entry_name(ENTRY, STAMP, "whisper"),
    ]
    assert len({NAME, *others}) == 4


def test_another_encoder_finds_nothing(tmp_path):
    FeatureCache(options(tmp_path)).keep(NAME, clip())
    assert FeatureCache(options(tmp_path, namespace="two")).read(NAME) is None


@pytest.mark.parametrize("damage", [lambda b: b[:-3], lambda b: b[:50] + b"x" + b[51:], lambda _: b"", lambda b: b + b"!"])
def test_a_damaged_entry_is_no_entry_and_is_written_again(tmp_path, damage):
    cache = FeatureCache(options(tmp_path))
    cache.keep(NAME, clip())
    (path,) = files(tmp_path)
    path.write_bytes(damage(path.read_bytes()))
    assert cache.read(NAME) is None
    cache.keep(NAME, clip())
    assert cache.read(NAME) is not None


LIMIT = 4_000
OLD, NEW = "a" * 32, "b" * 32


def in_group(group: str, count: int) -> list[str]:
    return [f"{group}{number:032x}" for number in range(count)]


def fill(folder: Path, group: str, *, namespace: str = "one") -> list[str]:
    """Fill the cache for a run that is over; the names that are kept."""
    names = in_group(group, 30)
    cache = FeatureCache(options(folder, namespace=namespace, limit=LIMIT), asked=[group])
    for name in names:
        cache.keep(name, clip())
    return [name for name in names if cache.read(name)]


def total(folder: Path) -> int:
    return sum(path.stat().st_size for path in files(folder))


def test_a_full_cache_keeps_what_it_has_of_what_is_asked_for(tmp_path):
    kept = fill(tmp_path, NEW)
    assert kept == in_group(NEW, len(kept))
    assert 3 < len(kept) < 30
    assert total(tmp_path) <= LIMIT


@pytest.mark.parametrize("namespace", ["one", "other encoder"])
def test_what_no_run_asks_for_makes_room_for_other_data(tmp_path, namespace):
    fill(tmp_path, OLD, namespace=namespace)
    assert len(fill(tmp_path, NEW)) > 3
    assert total(tmp_path) <= LIMIT


def test_what_was_used_last_goes_last(tmp_path):
    kept = fill(tmp_path, OLD)
    for age, name in enumerate(kept):
        os.utime(next(tmp_path.rglob(f"{name}.states")), (1000 - age,) * 2)
    FeatureCache(options(tmp_path)).read(kept[-1])
    # of the others the last were kept longest ago
    cache = FeatureCache(options(tmp_path, limit=LIMIT), asked=[NEW])
    for count, name in enumerate(in_group(NEW, len(kept)), start=1):
        cache.keep(name, clip())
        left = [name for name in kept if next(tmp_path.rglob(f"{name}.states"), None)]
        assert left in [[*kept[:few], kept[-1]] for few in range(len(kept))] or (left == [] and count == len(kept))
    assert left == []


@pytest.mark.parametrize("namespace", ["one", "other encoder"])
def test_what_another_present_run_asks_for_stays_until_that_has_ended(tmp_path, namespace):
    kept = fill(tmp_path, OLD, namespace=namespace)
    reader = FeatureCache(options(tmp_path, namespace=namespace, limit=LIMIT), asked=[OLD])
    assert fill(tmp_path, NEW) == []
    assert all(map(reader.read, kept))
    del reader
    assert len(fill(tmp_path, NEW)) > 3


def test_without_claims_nothing_goes(tmp_path):
    kept = fill(tmp_path, OLD)
    (tmp_path / "kappaspeech-states/claims/unreadable").mkdir()
    assert fill(tmp_path, NEW) == []
    FeatureCache(options(tmp_path, limit=LIMIT)).keep(NAME, clip())
    assert [name for name in kept if FeatureCache(options(tmp_path)).read(name)] == kept


@pytest.mark.parametrize(("language", "normalization"), [(None, "none"), ("de", "none"), (None, "whisper")])
def test_a_data_set_asks_for_the_groups_of_its_samples(tmp_path, language, normalization):
    for number, languages in enumerate((["en", "de"], ["de"], ["en"])):
        members = []
        for place, of in enumerate(languages):
            members += [(f"{place}.flac", speech_files.clip(0.5)), (f"{place}.json", details(text="x", language=of))]
        write_index(index_shard(str(make_tar(tmp_path / f"{number}.tar", members))))
    corpus = Corpus(SpeechDataset(str(tmp_path / "*.tar"), language, text_normalization=normalization), named=True)
    names = [corpus.ref(index).cache_name for index in range(corpus.num_samples)]
    assert {name[:32] for name in names if name} == corpus.cache_groups()
    assert len(set(names)) == len(corpus.cache_groups()) == (2 if language else 4)


def test_a_folder_that_can_not_be_written_is_done_without(tmp_path):
    (tmp_path / "file").write_text("in the way")
    cache = FeatureCache(options(tmp_path / "file"))
    cache.keep(NAME, clip())
    assert cache.read(NAME) is None


def load(folder: Path, ref: SampleRef) -> LoadedSample | BadSample:
    (sample,) = Loader(LoadOptions(80, 30.0, feature_cache=options(folder)), ReadOptions()).load([ref])
    return sample


def test_a_cached_sample_of_a_server_is_not_asked_for_while_its_shard_is_of_one_version(tmp_path):
    FeatureCache(options(tmp_path)).keep(NAME, replace(clip(), shard_stamp="v1"))
    sample = load(tmp_path, SampleRef("https://localhost:1/gone.tar", ENTRY, cache_name=NAME, shard_stamp="v1"))
    assert isinstance(sample, LoadedSample)
    assert sample.cached is not None
    np.testing.assert_array_equal(sample.cached.states_SE, clip().states_SE)
    assert sample.transcript == "grüne Tür"


@pytest.mark.parametrize("merged", [False, True])
@pytest.mark.parametrize("has_versions", [True, False])
def test_a_transcript_that_was_corrected_on_a_server_is_learned_also_of_a_cached_clip(tmp_path, has_versions, merged):
    def read(text: str) -> tuple[SampleRef, LoadedSample | BadSample]:
        """The sample as its shard has it now, its index left as it was."""
        make_tar(folder / "train.tar", [("k.flac", speech_files.clip(0.5)), ("k.txt", text.encode())])
        ref = Corpus(SpeechDataset(str(index) if merged else f"{server.url}/train.tar"), named=True).ref(0)
        server.ranges.clear()
        return ref, load(tmp_path, ref)

    folder, index = tmp_path / "shards", tmp_path / "train.index"
    folder.mkdir()
    with FaultyServer(folder) as server:
        server.has_versions = has_versions
        make_tar(folder / "train.tar", [("k.flac", speech_files.clip(0.5)), ("k.txt", "grüne Tür".encode())])
        write_index(index_shard(str(folder / "train.tar"), default_language="de"))
        write_merged(SampleTable.of([index_shard(f"{server.url}/train.tar", default_language="de")]), index)
        ref, fresh = read("grüne Tür")
        assert isinstance(fresh, LoadedSample)
        assert ref.cache_name is not None
        assert bool(ref.shard_stamp) is has_versions
        FeatureCache(options(tmp_path)).keep(ref.cache_name, replace(clip(), shard_stamp=ref.shard_stamp))
        again = load(tmp_path, ref)
        assert isinstance(again, LoadedSample)
        assert (again.cached is not None, again.transcript) == (True, "grüne Tür")
        # of a server that tells versions nothing was asked for, of another the text alone
        assert [end - begin for _, begin, end in server.ranges[1:]] == ([] if has_versions else [512 + ref.entry.text_bytes])
        other, corrected = read("grüne Uhr!")
        assert isinstance(corrected, LoadedSample)
        assert other.cache_name == ref.cache_name
        assert corrected.transcript == "grüne Uhr!"
        # what was replaced may be other audio, too
        assert (corrected.cached is None) is has_versions


def test_a_transcript_that_was_corrected_in_place_is_learned_also_of_a_cached_clip(tmp_path):
    def cached(text: str) -> LoadedSample | BadSample:
        """The sample as its shard has it now, its index left as it was."""
        make_tar(shard, [("k.flac", speech_files.clip(0.5)), ("k.txt", text.encode())])
        return load(tmp_path, ref)

    shard = make_tar(tmp_path / "train.tar", [("k.flac", speech_files.clip(0.5)), ("k.txt", "grüne Tür".encode())])
    write_index(index_shard(str(shard), default_language="de"))
    ref = Corpus(SpeechDataset(str(shard), text_normalization="whisper"), named=True).ref(0)
    assert ref.cache_name is not None
    FeatureCache(options(tmp_path)).keep(ref.cache_name, replace(clip(), transcript="grüne tür"))
    for text, expected in (("grüne Tür", "grüne tür"), ("grüne Uhr!", "grüne uhr")):
        sample = cached(text)
        assert isinstance(sample, LoadedSample)
        assert sample.cached is not None
        assert sample.transcript == expected
    # the tar is as large as before, and has another text in its place
    bad = cached("grüne Türen")
    assert isinstance(bad, BadSample)
    assert bad.cause == "shard"


def test_a_transcript_that_was_corrected_in_a_list_is_learned_of_the_states_that_are_cached(tmp_path):
    speech_files.write_nemo_tars(tmp_path / "nemo")
    manifest = tmp_path / "nemo/sharded_manifests/manifest_1.json"

    def read() -> tuple[SampleRef, LoadedSample | BadSample]:
        ref = Corpus(SpeechDataset(str(manifest)), named=True).ref(0)
        return ref, load(tmp_path, ref)

    ref, fresh = read()
    assert isinstance(fresh, LoadedSample)
    assert (fresh.cached, fresh.transcript) == (None, "zwei")
    assert ref.cache_name is not None
    FeatureCache(options(tmp_path)).keep(ref.cache_name, replace(clip(), transcript="zwei"))
    # a line before it moves the sample's own
    manifest.write_text("\n" + manifest.read_text().replace("zwei", "zwei!"))
    moved, corrected = read()
    assert moved.entry.key != ref.entry.key
    assert isinstance(corrected, LoadedSample)
    assert corrected.cached is not None
    assert corrected.transcript == "zwei!"


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_cached_clip_is_learned_as_it_was_cached_if_its_shard_is_gone_and_one_warning_tells(tmp_path, capsys, num_workers):
    where = str(tmp_path / "gone\x1b.tar")
    FeatureCache(options(tmp_path)).keep(NAME, clip())
    pool = LoaderPool(LoadOptions(80, 30.0, feature_cache=options(tmp_path)), ReadOptions(), num_workers=num_workers)
    try:
        for _ in range(2):
            (sample,) = pool.take(pool.submit([SampleRef(where, ENTRY, cache_name=NAME)]))
            assert isinstance(sample, LoadedSample)
            assert sample.cached is not None
            assert sample.transcript == "grüne Tür"
    finally:
        pool.close()
    (told,) = capsys.readouterr().err.splitlines()
    assert told.startswith("warning: ")
    assert "\x1b" not in told
    assert "is gone" in told


def test_a_shard_that_is_there_and_can_not_be_read_is_no_shard_that_is_gone(tmp_path):
    FeatureCache(options(tmp_path)).keep(NAME, clip())
    (tmp_path / "folder.tar").mkdir()
    with pytest.raises(DataError, match="no regular file"):
        load(tmp_path, SampleRef(str(tmp_path / "folder.tar"), ENTRY, cache_name=NAME))


def test_data_whose_states_are_more_than_the_cache_takes_are_told_to_doctor_and_train(home, tmp_path, capsys):
    """They were encoded again in each epoch, and nobody said so."""
    from kappaspeech.config.run_config import read_run_config
    from kappaspeech.diagnosis.configuration import check_configuration
    from kappaspeech.model.encoder import load_encoder
    from kappaspeech.speech.corpus import make_datasets
    from kappaspeech.speech.schedule import BatchBudget
    from kappaspeech.speech.stream import SpeechStream
    from kappaspeech.training.loaded import warn_of_small_cache

    found = {}
    for gigabytes in (1.0, 1e-5):
        changes = {"data__feature_cache_dir": str(tmp_path / "cache"), "data__feature_cache_gb": gigabytes}
        path = tiny.write_config(tmp_path / "c.yaml", home, tmp_path / "run", **changes)
        config = read_run_config(path)
        findings = check_configuration(config, world_size=1, environment={})
        (found[gigabytes],) = [item for item in findings if "encoder states of data.train" in item.found]
        stream = SpeechStream(
            make_datasets(config.data.train),
            tokenizer=None,
            num_mels=80,
            budget=BatchBudget(3, 20.0, 1),
            max_seconds=20.0,
            seed=1,
            rank=0,
            world_size=1,
        )
        encoder = load_encoder(str(home / "whisper.pt"), pad_to_30s=False, dtype=torch.float32)
        kept = options(tmp_path / "cache", limit=int(gigabytes * 2**30))
        warn_of_small_cache(kept, encoder, stream, max_seconds=config.batch.max_seconds)
    assert [item.status for item in found.values()] == ["ok", "warning"]
    assert "Raise data.feature_cache_gb" in found[1e-5].remedy
    said = capsys.readouterr().err
    assert said.count("warning: data.feature_cache_gb is 1e-05, and the encoder states of data.train take about ") == 1


def test_the_size_of_states_is_that_of_the_longest_clips_that_are_encoded():
    size = StateSize(seconds_per_state=0.02, bytes_per_state=8, max_seconds=1.0)
    lengths = np.array([0.5, 0.51, 7.0], dtype=np.float32)
    assert size.count_bytes([lengths, lengths[:1]]) == 8 * (25 + 26 + 50 + 25)
