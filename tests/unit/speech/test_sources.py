"""Shards read over HTTP and from S3: the same samples as from a disk, whatever the server does, or an error that names it."""

from __future__ import annotations

import functools
import os
import shutil
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from kappaspeech.errors import DataError
from kappaspeech.speech import block_cache
from kappaspeech.speech.block_cache import CachedSource
from kappaspeech.speech.corpus import Corpus, SpeechDataset
from kappaspeech.speech.held_out import read_test_batches
from kappaspeech.speech.loading import Loader, LoadOptions
from kappaspeech.speech.ranges import read_many
from kappaspeech.speech.sample_reader import SampleReader
from kappaspeech.speech.shard_indexing import index_shard
from kappaspeech.speech.shards import check_unchanged, expand, read_index, write_index
from kappaspeech.speech.source import ReadOptions, is_remote
from kappaspeech.speech.sources import open_source
from kappaspeech.speech.table import SampleTable, read_merged, write_merged
from tests.patience import patience
from tests.web import FaultyServer, within

QUICK = ReadOptions(attempts=4, stall_seconds=1.0)


@pytest.fixture
def folder(home, tmp_path) -> Path:
    return Path(shutil.copytree(home / "shards/train", tmp_path / "shards"))


@pytest.fixture
def server(folder, monkeypatch):
    monkeypatch.setattr("kappaspeech.speech.remote._FIRST_PAUSE_SECONDS", 0.02)
    with FaultyServer(folder) as running:
        yield running


def read_all(shards: str, read: ReadOptions) -> dict[str, tuple[str, bytes]]:
    batches = read_test_batches([SpeechDataset(shards)], batch_size=4, read=read)
    return {sample.key: (sample.transcript, sample.waveform.tobytes()) for batch in batches for sample in batch}


def shard_list(folder: Path) -> str:
    return "{" + ",".join(sorted(path.name for path in folder.glob("*.tar"))) + "}"


def test_a_brace_list_of_urls_gives_what_the_disk_gives(server, folder):
    assert read_all(f"{server.url}/{shard_list(folder)}", QUICK) == read_all(str(folder / "*.tar"), QUICK)


@pytest.mark.parametrize("faults", [["500"] * 3, ["reset", "500"], ["short"] * 5, ["stall"], ["reset", "short", "500", "stall"]])
def test_what_may_pass_is_tried_again_to_the_same_samples(server, folder, faults):
    first = sorted(folder.glob("*.tar"))[0].name
    whole = read_all(str(folder / first), QUICK)
    corpus = Corpus(SpeechDataset(f"{server.url}/{first}"), QUICK)
    server.faults = list(faults)
    with within(10):
        samples = SampleReader(QUICK).read([corpus.ref(index) for index in range(corpus.num_samples)])
    assert {sample.key: (sample.transcript, sample.waveform.tobytes()) for sample in samples} == whole
    assert not server.faults


@pytest.mark.parametrize(
    ("fault", "says", "num_requests"),
    [
        ("404", "can't be read", 1),
        ("403", "can't be read", 1),
        ("500", "after 4 attempts", 4),
        ("stall", "after 4 attempts", 4),
        ("reset", "after 4 attempts", 4),
        ("whole", "ignores Range", 1),
    ],
)
def test_what_does_not_pass_is_an_error_that_names_the_shard(server, folder, fault, says, num_requests):
    first = sorted(folder.glob("*.tar"))[0].name
    corpus = Corpus(SpeechDataset(f"{server.url}/{first}"), QUICK)
    ref = corpus.ref(0)
    server.requests.clear()
    server.always = fault
    with within(10), pytest.raises(DataError, match=rf"{first}.*{says}"):
        SampleReader(QUICK).read([ref])
    # aiohttp asks once more by itself if a kept connection turns out to be closed
    assert num_requests <= server.requests[f"/{first}"] <= num_requests * (2 if fault == "reset" else 1)


@pytest.mark.parametrize("where", ["boundary", "inside"])
@pytest.mark.parametrize("over_http", [True, False])
def test_a_cut_tar_is_refused_when_indexed_and_when_read(server, folder, where, over_http):
    shard = sorted(folder.glob("*.tar"))[0]
    index = read_index(str(shard))
    last = index.samples[-1]
    # just before the last sample's first header, or in the middle of its audio
    cut = min(last.audio_offset, last.text_offset) - 512 if where == "boundary" else last.audio_offset + last.audio_bytes // 2
    shard.write_bytes(shard.read_bytes()[:cut])
    place = f"{server.url}/{shard.name}" if over_http else str(shard)
    with pytest.raises(DataError, match="cut"):
        index_shard(place, options=QUICK)
    with pytest.raises(DataError, match="when it was indexed"):
        read_index(place, QUICK)


def test_a_shard_that_is_cut_while_it_is_read_masks_what_is_gone_and_keeps_the_rest(folder):
    shard = sorted(folder.glob("*.tar"))[0]
    corpus = Corpus(SpeechDataset(str(shard)))
    refs = [corpus.ref(index) for index in range(corpus.num_samples)]
    whole = SampleReader(QUICK).read(refs)
    entry = refs[-1].entry
    shard.write_bytes(shard.read_bytes()[: entry.audio_offset + 10])
    loaded = Loader(LoadOptions(num_mels=80, max_seconds=30.0), QUICK).load(refs)
    assert [getattr(item, "transcript", None) for item in loaded] == [sample.transcript for sample in whole[:-1]] + [None]
    assert (loaded[-1].key, loaded[-1].cause) == (entry.key, "shard")


def test_swapped_samples_are_never_paired_wrongly(folder):
    """Two samples of one size change places: the index still points at valid audio, and it is another's."""
    shard = sorted(folder.glob("*.tar"))[0]
    corpus = Corpus(SpeechDataset(str(shard)))
    refs = [corpus.ref(index) for index in range(corpus.num_samples)]
    content = bytearray(shard.read_bytes())
    one, other = refs[0].entry, refs[1].entry
    for entry, name in ((one, other.key), (other, one.key)):
        header = bytearray(content[entry.audio_offset - 512 : entry.audio_offset])
        header[:100] = f"{name}.flac".encode().ljust(100, b"\0")
        header[148:156] = b" " * 8
        header[148:156] = f"{sum(header):06o}\0 ".encode()
        content[entry.audio_offset - 512 : entry.audio_offset] = header
    shard.write_bytes(bytes(content))
    loaded = Loader(LoadOptions(num_mels=80, max_seconds=30.0), QUICK).load(refs[:3])
    assert [getattr(item, "cause", None) for item in loaded] == ["shard", "shard", None]
    with pytest.raises(DataError, match="holds other samples"):
        read_index(str(shard))


def test_indices_are_read_side_by_side_and_the_first_that_is_missing_is_named(server, folder):
    shards = sorted(folder.glob("*.tar"))
    where = f"{server.url}/{shard_list(folder)}"
    # none is answered before all were asked for
    server.wanted_at_once = len(shards)
    with within(20):
        corpus = Corpus(SpeechDataset(where), QUICK)
    assert [place for place, _ in corpus.table.shards] == expand(where)
    for shard in shards[2:4]:
        Path(f"{shard}.index.json").unlink()
    with pytest.raises(DataError, match=f"{shards[2].name} has no index"):
        Corpus(SpeechDataset(where), QUICK)


def test_a_shard_replaced_on_the_server_is_refused_by_name(server, folder):
    shard = sorted(folder.glob("en-*.tar"))[0]
    other = sorted(folder.glob("en-*.tar"))[1]
    shard.write_bytes(other.read_bytes())
    with pytest.raises(DataError, match=rf"{shard.name} .* when it was indexed"):
        Corpus(SpeechDataset(f"{server.url}/{shard.name}"), QUICK)


def test_urls_are_indexed_into_one_local_file(server, folder, tmp_path):
    for beside in folder.glob("*.index.json"):
        beside.unlink()
    merged = tmp_path / "train.index"
    shards = [index_shard(where, options=QUICK) for where in expand(f"{server.url}/{shard_list(folder)}")]
    write_merged(SampleTable.of(shards), merged)
    local = [index_shard(str(path)) for path in sorted(folder.glob("*.tar"))]
    assert [shard.samples for shard in shards] == [shard.samples for shard in local]
    assert read_all(str(merged), QUICK).keys() == {sample.key for shard in local for sample in shard.samples}
    with pytest.raises(DataError, match="--output"):
        write_index(shards[0])
    # a merged index is checked when a shard is first read
    shutil.copy(sorted(folder.glob("*.tar"))[1], sorted(folder.glob("*.tar"))[0])
    with pytest.raises(DataError, match="when it was indexed"):
        read_all(str(merged), QUICK)


def test_a_shard_that_is_named_twice_in_one_data_set_is_refused(folder):
    first = sorted(folder.glob("*.tar"))[0]
    with pytest.raises(DataError, match=rf"{first} is named twice in one data set"):
        Corpus(SpeechDataset(f"{{{folder}/*.tar,{first}}}"))


def test_a_local_file_of_which_the_system_gives_less_at_a_time_is_read_whole(folder, monkeypatch):
    first = sorted(folder.glob("*.tar"))[0]
    read = os.pread
    monkeypatch.setattr(os, "pread", lambda descriptor, size, offset: read(descriptor, min(size, 1000), offset))
    assert open_source(str(first), QUICK).read(100, 5000) == first.read_bytes()[100:5100]


def test_a_merged_index_is_the_table_of_its_shards_and_moves_with_them(folder, tmp_path):
    table = SampleTable.of([read_index(where) for where in expand(str(folder / "*.tar"))])
    write_merged(table, folder / "all.index")
    moved = shutil.move(folder, tmp_path / "moved")
    read = read_merged(Path(moved) / "all.index")
    assert [read.entry(row) for row in range(len(read))] == [table.entry(row) for row in range(len(table))]
    assert read.fingerprint == SampleTable.of([read_index(where) for where in expand(f"{moved}/*.tar")]).fingerprint
    assert read_all(f"{moved}/all.index", QUICK) == read_all(f"{moved}/*.tar", QUICK)
    (Path(moved) / "all.index").write_bytes((Path(moved) / "all.index").read_bytes()[:500])
    with pytest.raises(DataError, match="no merged index"):
        read_merged(Path(moved) / "all.index")


def test_the_cache_serves_what_was_read_is_bounded_and_survives_damage(server, folder, tmp_path, monkeypatch):
    monkeypatch.setattr("kappaspeech.speech.block_cache._BLOCK_BYTES", 10_000)
    shard = max(folder.glob("*.tar"), key=lambda path: path.stat().st_size)
    content = shard.read_bytes()
    cache = tmp_path / "cache"
    options = ReadOptions(attempts=2, stall_seconds=1.0, cache_dir=str(cache), cache_bytes=35_000)
    source = open_source(f"{server.url}/{shard.name}", options)
    generator = np.random.default_rng(0)

    def check() -> None:
        begin, end = np.sort(generator.integers(0, len(content) + 1, 2))
        assert source.read(int(begin), int(end - begin)) == content[begin:end]

    source.read(0, 9_000)
    before = server.requests[f"/{shard.name}"]
    assert source.read(100, 200) == content[100:300]
    assert server.requests[f"/{shard.name}"] == before
    for _ in range(20):
        check()
    kept = [path for path in cache.rglob("*") if path.is_file()]
    assert 0 < sum(path.stat().st_size for path in kept) <= 35_000
    for path in kept:
        path.write_bytes(b"x")  # cut by a full disk
    check()
    shutil.rmtree(cache)
    cache.write_text("no folder can be made here")
    check()


def test_a_shard_indexed_elsewhere_is_compared_with_its_index_once_for_each_version(server, folder, tmp_path):
    name = sorted(folder.glob("*.tar"))[0].name
    options = ReadOptions(attempts=2, stall_seconds=patience(10), cache_dir=str(tmp_path / "cache"))
    dataset = SpeechDataset(f"{server.url}/{name}")
    Corpus(dataset, options)
    for block in (tmp_path / "cache").rglob("*.block"):
        block.unlink()
    server.ranges.clear()
    Corpus(dataset, options)
    # the index alone was read again, none of the shard
    assert {path for path, _, _ in server.ranges} == {f"/{name}.index.json"}
    content = bytearray((folder / name).read_bytes())
    entry = read_index(str(folder / name)).samples[0]
    content[entry.audio_offset + 100] ^= 1
    (folder / name).write_bytes(content)
    for _ in range(2):
        with pytest.raises(DataError, match="holds other samples than when it was indexed"):
            Corpus(dataset, options)


def test_a_block_that_was_read_before_it_was_fetched_ahead_is_not_fetched_again(server, folder, tmp_path, monkeypatch):
    is_late, is_done = threading.Event(), threading.Event()
    fetch = CachedSource._fetch_expected

    def fetch_late(self: CachedSource, number: int) -> None:
        is_late.wait(patience(10))
        fetch(self, number)
        is_done.set()

    monkeypatch.setattr(CachedSource, "_fetch_expected", fetch_late)
    name = sorted(folder.glob("*.tar"))[0].name
    source = open_source(f"{server.url}/{name}", ReadOptions(cache_dir=str(tmp_path / "cache")))
    assert source.expect(0, 100)
    assert source.read(0, 100) == (folder / name).read_bytes()[:100]
    # another process needed its room
    for block in (tmp_path / "cache").rglob("*.block"):
        block.unlink()
    server.ranges.clear()
    is_late.set()
    assert is_done.wait(patience(10))
    assert server.ranges == []


@pytest.mark.parametrize("limit", [20 << 30, 1000])
def test_where_blocks_can_not_be_kept_no_more_is_fetched_than_is_wanted(server, folder, tmp_path, monkeypatch, limit):
    if limit > 1000:
        (tmp_path / "cache").write_text("no folder can be made here")
    name = sorted(folder.glob("*.tar"))[0].name
    content = (folder / name).read_bytes()
    options = ReadOptions(cache_dir=str(tmp_path / "cache"), cache_bytes=limit)
    # the first finds out
    assert open_source(f"{server.url}/{name}", options).read(0, 100) == content[:100]
    server.ranges.clear()
    for begin in (200, 400):
        assert read_many([(open_source(f"{server.url}/{name}", options), begin, 100)]) == [content[begin:][:100]]
    assert server.ranges == [(f"/{name}", 200, 300), (f"/{name}", 400, 500)]
    # once room was made, blocks are kept again
    monkeypatch.setattr(block_cache, "_refused_until", {})
    if limit > 1000:
        (tmp_path / "cache").unlink()
    source = open_source(f"{server.url}/{name}", ReadOptions(cache_dir=str(tmp_path / "cache")))
    assert source.read(0, 100) == content[:100]
    assert list((tmp_path / "cache").rglob("*.block"))


def test_another_index_of_a_shard_that_was_compared_is_compared_too(server, folder, tmp_path):
    name = sorted(folder.glob("*.tar"))[0].name
    options = ReadOptions(attempts=2, stall_seconds=patience(10), cache_dir=str(tmp_path / "cache"))
    index = read_index(f"{server.url}/{name}", options)
    source = open_source(index.where, options)
    check_unchanged(source, index.stamp, index.samples)
    with pytest.raises(DataError, match="holds other samples"):
        check_unchanged(source, index.stamp, index.samples[:-1])
    with pytest.raises(DataError, match="holds other samples"):
        check_unchanged(source, replace(index.stamp, digest="0" * 64), index.samples)


@pytest.mark.parametrize("has_versions", [True, False])
def test_a_text_that_was_corrected_on_a_server_is_read_also_if_blocks_are_kept(server, folder, tmp_path, has_versions):
    server.has_versions = has_versions
    shard = sorted(folder.glob("*.tar"))[0]
    options = ReadOptions(attempts=2, stall_seconds=patience(10), cache_dir=str(tmp_path / "cache"))

    def read() -> str:
        corpus = Corpus(SpeechDataset(f"{server.url}/{shard.name}"), options)
        (sample,) = SampleReader(options).read([corpus.ref(0)])
        return sample.transcript

    old = read()
    content = shard.read_bytes()
    # of the same length, and indexed again
    new = old[::-1]
    shard.write_bytes(content.replace(f'"{old}"'.encode(), f'"{new}"'.encode()))
    assert shard.read_bytes() != content
    write_index(index_shard(str(shard)))
    assert read() == new


def test_threads_that_want_one_block_fetch_it_once(server, folder, tmp_path):
    shard = max(folder.glob("*.tar"), key=lambda path: path.stat().st_size)
    source = open_source(f"{server.url}/{shard.name}", ReadOptions(cache_dir=str(tmp_path / "cache")))
    source.num_bytes()
    before = server.requests[f"/{shard.name}"]
    ranges = [(source, offset, 100) for offset in range(0, 3200, 100)]
    assert b"".join(read_many(ranges)) == shard.read_bytes()[:3200]
    assert source.read(100, 100) == shard.read_bytes()[100:200]
    assert server.requests[f"/{shard.name}"] == before + 1
    with pytest.raises(EOFError):
        source.expect(shard.stat().st_size, 1)


def test_blocks_that_are_expected_are_fetched_side_by_side_and_once(server, folder, tmp_path, monkeypatch):
    monkeypatch.setattr("kappaspeech.speech.block_cache._BLOCK_BYTES", 10_000)
    shard = max(folder.glob("*.tar"), key=lambda path: path.stat().st_size)
    source = open_source(f"{server.url}/{shard.name}", ReadOptions(cache_dir=str(tmp_path / "cache")))
    source.num_bytes()
    server.ranges.clear()
    server.wanted_at_once = 5
    places = [(offset, 100) for offset in range(0, 50_000, 500)]
    assert all(source.expect(*place) for place in places)
    with server.arrived:
        assert server.arrived.wait_for(lambda: server.most_at_once == 5, timeout=30)
    assert b"".join(source.read(*place) for place in places) == b"".join(shard.read_bytes()[o : o + n] for o, n in places)
    assert sorted(begin for _, begin, _ in server.ranges) == [0, 10_000, 20_000, 30_000, 40_000]


@pytest.fixture
def bucket(monkeypatch):
    """A client of an S3 server, with the empty bucket "speech"."""
    import boto3
    import moto.server as server_module

    monkeypatch.setattr("kappaspeech.speech.remote._systems", {})
    running = server_module.ThreadedMotoServer(port=0, verbose=False)
    running.start()
    host, port = running.get_host_and_port()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
    for name, value in (("ACCESS_KEY_ID", "test"), ("SECRET_ACCESS_KEY", "test"), ("DEFAULT_REGION", "us-east-1")):
        monkeypatch.setenv(f"AWS_{name}", value)
    client = boto3.client("s3")
    client.create_bucket(Bucket="speech")
    yield client
    running.stop()


def test_an_s3_api_gives_what_the_disk_gives(folder, bucket):
    for path in folder.iterdir():
        bucket.upload_file(str(path), "speech", f"train/{path.name}")
    local = read_all(str(folder / "*.tar"), QUICK)
    assert read_all("s3://speech/train/*.tar", QUICK) == local
    name = sorted(path.name for path in folder.glob("*.tar"))[0]
    assert index_shard(f"s3://speech/train/{name}", options=QUICK).samples == index_shard(str(folder / name)).samples
    with pytest.raises(DataError, match="can't be read"):
        Corpus(SpeechDataset("s3://speech/train/none.tar"), QUICK)
    with pytest.raises(DataError, match="No shard matches"):
        Corpus(SpeechDataset("s3://speech/elsewhere/*.tar"), QUICK)


def test_an_object_of_s3_that_is_replaced_while_it_is_read_is_refused(bucket):
    put = functools.partial(bucket.put_object, Bucket="speech", Key="train/x.tar")
    put(Body=b"a" * 5000)
    source = open_source("s3://speech/train/x.tar", QUICK)
    assert source.read(0, 1000) == b"a" * 1000
    # of the same content, so that it is the same version
    put(Body=b"a" * 5000)
    assert source.read(1000, 4000) == b"a" * 4000
    put(Body=b"b" * 5000)
    with pytest.raises(DataError, match="was replaced while it was read: it had 5000 bytes and version"):
        source.read(0, 1000)
    with pytest.raises(DataError, match="can't be read"):
        open_source("s3://speech/train/x.tar", QUICK).read(5000, 10)


def test_an_object_whose_store_tells_no_version_with_its_bytes_is_asked_for_it(monkeypatch):
    import fsspec.asyn as fsspec

    class Store(fsspec.AsyncFileSystem):
        generation, num_looks, content = 1, 0, b"a" * 100

        async def _info(self, _path, **_):
            self.num_looks += 1
            return {"size": len(self.content), "etag": f"CJ{self.generation}", "generation": str(self.generation)}

        async def _cat_file(self, _path, start=None, end=None, **_):
            return self.content[start:end]

    store = Store(skip_instance_cache=True)
    monkeypatch.setattr("kappaspeech.speech.remote._systems", {("gs", QUICK.stall_seconds): store})
    source = open_source("gs://speech/x.tar", QUICK)
    assert source.num_bytes() == 100
    for _ in range(20):
        assert source.read(0, 10) == b"a" * 10
    assert store.num_looks == 1
    monkeypatch.setattr("kappaspeech.speech.remote._VERSION_INTERVAL_SECONDS", 0.0)
    assert source.read(0, 10) == b"a" * 10
    store.generation, store.content = 2, b"b" * 100
    with pytest.raises(DataError, match="was replaced while it was read"):
        source.read(0, 10)


def test_only_known_schemes_are_read_and_a_missing_library_is_named(monkeypatch):
    assert not is_remote("/data/x.tar")
    assert is_remote("gs://bucket/x.tar")
    for where in ("pipe:cat x", "ftp://host/x.tar", "file:///etc/passwd"):
        with pytest.raises(DataError, match="not from"):
            is_remote(where)

    def missing(*_: object) -> None:
        raise ImportError("No module named 'gcsfs'")

    monkeypatch.setattr("kappaspeech.speech.remote._systems", {})
    monkeypatch.setattr("kappaspeech.speech.remote._make_file_system", missing)
    with pytest.raises(DataError, match=r"kappaspeech\[gs\]"):
        open_source("gs://bucket/x.tar", QUICK).num_bytes()


def test_reads_from_many_threads_are_whole(server, folder):
    shard = sorted(folder.glob("*.tar"))[0]
    content = shard.read_bytes()
    source = open_source(f"{server.url}/{shard.name}", QUICK)
    wrong: list[int] = []

    def check(seed: int) -> None:
        generator = np.random.default_rng(seed)
        for _ in range(10):
            begin, end = np.sort(generator.integers(0, len(content) + 1, 2))
            if source.read(int(begin), int(end - begin)) != content[begin:end]:
                wrong.append(seed)

    threads = [threading.Thread(target=check, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert not wrong
