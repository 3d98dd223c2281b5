"""Servers that fail, lie or never end, and URLs that are signed or broken: read right, or refused by name within seconds."""

from __future__ import annotations

import json
import shutil
import socket
import struct
import threading
from pathlib import Path

import pytest

from kappaspeech.errors import DataError
from kappaspeech.speech import shards
from kappaspeech.speech.corpus import Corpus, SpeechDataset
from kappaspeech.speech.remote import explain
from kappaspeech.speech.shard_indexing import index_shard
from kappaspeech.speech.shards import SampleEntry, ShardIndex, ShardStamp, expand, read_index
from kappaspeech.speech.source import ReadOptions
from kappaspeech.speech.sources import open_source
from kappaspeech.speech.table import SampleTable, write_merged
from kappaspeech.speech.web import ReadProblemError
from tests.unit.speech.test_sources import read_all
from tests.web import FaultyServer, within

QUICK = ReadOptions(attempts=3, stall_seconds=1.0)
CONTENT = bytes(range(256)) * 400


@pytest.fixture
def server(tmp_path, monkeypatch):
    monkeypatch.setattr("kappaspeech.speech.remote._FIRST_PAUSE_SECONDS", 0.02)
    (tmp_path / "www").mkdir()
    (tmp_path / "www/x.tar").write_bytes(CONTENT)
    with FaultyServer(tmp_path / "www") as running:
        yield running


@pytest.mark.parametrize("faults", [["503", "500"], ["429", "408"], ["reset"], ["stall"]])
def test_a_size_is_asked_for_again_where_that_may_help(server, faults):
    server.head_faults = list(faults)
    with within(20):
        assert open_source(f"{server.url}/x.tar", QUICK).num_bytes() == len(CONTENT)
    assert not server.head_faults


@pytest.mark.parametrize(
    ("head", "ranged", "says"),
    [
        ("401", "401", r"wants credentials \(401\)"),
        ("403", "403", r"refuses it \(403\)"),
        ("404", "404", r"no such file \(404\)"),
        ("410", "410", r"gone \(410\)"),
        ("503", None, r"after 3 attempts: the server answers 503"),
        ("429", None, r"after 3 attempts: the server is asked too often"),
        ("loop", "loop", "redirects in a circle"),
        ("stall", None, "after 3 attempts: no answer came in time"),
    ],
)
def test_why_a_size_can_not_be_had_is_named(server, head, ranged, says):
    server.always_head, server.always = head, ranged
    with within(20), pytest.raises(DataError, match=rf"x\.tar can't be read.*{says}"):
        open_source(f"{server.url}/x.tar", QUICK).num_bytes()
    assert server.num_heads <= (3 if ranged is None else 30)


def test_a_refused_connection_is_tried_again_and_named():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    source = open_source(f"http://127.0.0.1:{port}/x.tar", ReadOptions(attempts=2, stall_seconds=1.0))
    with within(20), pytest.raises(DataError, match=r"after 2 attempts: .*[Cc]onnect"):
        source.num_bytes()


@pytest.mark.parametrize("status", ["403", "405", "501", "400"])
def test_a_server_without_head_is_asked_for_a_range(server, status):
    server.always_head = status
    source = open_source(f"{server.url}/x.tar", QUICK)
    assert source.num_bytes() == len(CONTENT)
    assert source.read(1000, 500) == CONTENT[1000:1500]


def test_a_range_that_was_not_asked_for_is_never_taken(server):
    source = open_source(f"{server.url}/x.tar", QUICK)
    server.faults = ["moved"]
    assert source.read(1000, 500) == CONTENT[1000:1500]
    server.always = "moved"
    with pytest.raises(DataError, match="bytes 1000 to 1499 were asked for, and 'bytes 1001-1500"):
        source.read(1000, 500)


def test_a_file_of_two_sizes_is_refused(server):
    source = open_source(f"{server.url}/x.tar", QUICK)
    source.num_bytes()
    server.always = "grown"
    with within(5), pytest.raises(DataError, match="was replaced while it was read"):
        source.read(1000, 500)


def test_a_file_that_is_replaced_while_it_is_read_is_refused(server):
    source = open_source(f"{server.url}/x.tar", QUICK)
    source.read(0, 100)
    (server.folder / "x.tar").write_bytes(CONTENT[::-1])
    with pytest.raises(DataError, match="was replaced while it was read"):
        source.read(100, 100)


@pytest.mark.parametrize("fault", ["endless", "drip"])
def test_a_body_without_an_end_is_given_up_before_it_costs_memory_or_time(server, fault):
    source = open_source(f"{server.url}/x.tar", QUICK)
    server.always = fault
    with within(20), pytest.raises(DataError, match=r"more than it was asked for|is given up"):
        source.read(0, 50_000)
    assert server.num_endless_bytes < 64 << 20
    assert server.requests["/x.tar"] < 100


def test_an_index_of_a_size_that_no_index_has_is_not_read(server):
    (server.folder / "x.tar.index.json").write_text("{}")
    server.always_head = f"size {10**13}"
    with within(5), pytest.raises(DataError, match=r"x\.tar has no index .*10,000,000,000,000 bytes"):
        read_index(f"{server.url}/x.tar", QUICK)
    assert not server.requests


def test_an_index_of_a_server_that_lies_about_its_size_is_refused_at_once(server):
    (server.folder / "x.tar.index.json").write_text("{}")
    server.head_faults = ["size 40000000"]
    with within(5), pytest.raises(DataError, match="no index beside it that can be read"):
        read_index(f"{server.url}/x.tar", QUICK)


def test_an_index_that_is_nested_too_deeply_is_refused(server):
    (server.folder / "x.tar.index.json").write_text("[" * 100_000)
    for where in (f"{server.url}/x.tar", str(server.folder / "x.tar")):
        with pytest.raises(DataError, match="is nested too deeply"):
            read_index(where, QUICK)


def entry(offset: int) -> SampleEntry:
    return SampleEntry("k", 1.0, "en", offset, 2000, offset + 3000, 10, text_is_json=False)


def test_a_replaced_shard_of_a_server_without_versions_is_noticed_by_its_index(server, tmp_path):
    server.has_versions = False
    place = f"{server.url}/x.tar"
    source = open_source(place, QUICK)
    samples = (entry(1024), entry(9216))
    index = ShardIndex(place, ShardStamp(len(CONTENT), source.stamp(), shards.digest_heads(source, samples)), samples)
    assert index.stamp.stamp == ""
    merged = tmp_path / "all.index"
    write_merged(SampleTable.of([index]), merged)
    cached = ReadOptions(attempts=2, stall_seconds=1.0, cache_dir=str(tmp_path / "cache"))
    Corpus(SpeechDataset(str(merged)), cached).ref(0)
    (server.folder / "x.tar").write_bytes(CONTENT[:9000] + CONTENT[9001:] + b"!")
    with pytest.raises(DataError, match="holds other samples than when it was indexed"):
        Corpus(SpeechDataset(str(merged)), cached).ref(0)


def test_of_a_server_without_versions_no_block_is_kept(server, tmp_path):
    server.has_versions = False
    options = ReadOptions(attempts=2, stall_seconds=1.0, cache_dir=str(tmp_path / "cache"))
    place = f"{server.url}/x.tar"
    unknown = open_source(place, options)
    assert unknown.read(0, 100) == CONTENT[:100]
    assert unknown.read(0, 100) == CONTENT[:100]
    assert server.ranges == [("/x.tar", 0, 100)] * 2
    (server.folder / "x.tar").write_bytes(CONTENT[::-1])
    assert open_source(place, options).read(0, 100) == CONTENT[::-1][:100]


# ---- URLs that are signed -------------------------------------------------------------------------------------------------


def test_signed_urls_are_read_like_any_others(home, tmp_path, monkeypatch):
    monkeypatch.setattr("kappaspeech.speech.remote._FIRST_PAUSE_SECONDS", 0.02)
    folder = Path(shutil.copytree(home / "shards/train", tmp_path / "shards"))
    names = sorted(path.name for path in folder.glob("*.tar"))[:2]
    local = read_all(f"{folder}/{{{','.join(names)}}}", QUICK)
    with FaultyServer(folder) as server:
        server.wanted_query = "X-Amz-Signature=ab%2Fc%3D&X-Amz-Expires=60"
        pattern = f"{server.url}/{{{','.join(names)}}}?{server.wanted_query}"
        assert read_all(pattern, QUICK) == local
        indices = [index_shard(where, options=QUICK) for where in expand(pattern)]
        # a shard signed anew is the same shard
        again = [ShardIndex(index.where.replace("=60", "=90"), index.stamp, index.samples) for index in indices]
        assert SampleTable.of(again).fingerprint == SampleTable.of(indices).fingerprint
        wrong = pattern.replace("ab%2Fc", "hunter2")
        with pytest.raises(DataError, match=r"403.*signature") as raised:
            read_all(wrong, QUICK)
    assert "hunter2" not in str(raised.value)
    assert "?***" in str(raised.value)


def test_a_url_whose_secret_was_hidden_says_so():
    with pytest.raises(DataError, match=r"without its password or signature.*secrets\.json"):
        open_source("https://***@host/x.tar", QUICK)


# ---- names that can't be read -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "pattern",
    [
        "http://[::1/x.tar",
        "http://[zz]/x.tar",
        "http://host:99999999/x.tar",
        "http://host:port/x.tar",
        "http:///x.tar",
        "s3:///x.tar",
        "{a,b.tar",
        "a}.tar",
        "x{0..9999999}.tar",
        "http://host/x{0..9999999}.tar",
        "{0..999}{0..999}{0..999}.tar",
        "{{0..9999}{0..9999},y}.tar",
        "{0.." + "9" * 5000 + "}.tar",
        "{" * 5000 + "a,b" + "}" * 5000 + ".tar",
        "http://host/*.tar",
    ],
)
def test_a_pattern_that_can_not_be_read_is_refused_at_once(pattern):
    with within(2), pytest.raises(DataError) as raised:
        expand(pattern)
    assert len(str(raised.value)) < 1000


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("http://h/{a,b}{1..2}.tar", ["http://h/a1.tar", "http://h/a2.tar", "http://h/b1.tar", "http://h/b2.tar"]),
        ("http://h/{08..10}.tar", ["http://h/08.tar", "http://h/09.tar", "http://h/10.tar"]),
        ("http://h/{x{1..2},y}.tar", ["http://h/x1.tar", "http://h/x2.tar", "http://h/y.tar"]),
        ("http://h/{a..c..2}.tar", ["http://h/a.tar", "http://h/c.tar"]),
        ("http://[::1]:80/x.tar?a=*", ["http://[::1]:80/x.tar?a=*"]),
        ("http://h{1..2}:80/x.tar", ["http://h1:80/x.tar", "http://h2:80/x.tar"]),
    ],
)
def test_a_pattern_is_what_it_was(pattern, names):
    assert expand(pattern) == names


def test_a_long_list_of_shards_is_still_one():
    assert len(expand("http://host/{000000..099999}.tar")) == 100_000


@pytest.mark.parametrize(
    "error", [ReadProblemError("x", is_permanent=True), ValueError("x"), FileNotFoundError("x"), PermissionError("x")]
)
def test_what_would_only_be_said_again_is_permanent(error):
    assert explain(error)[1]


@pytest.mark.parametrize("error", [TimeoutError(), ConnectionResetError("x"), OSError("x")])
def test_what_may_pass_is_not_permanent(error):
    assert not explain(error)[1]


def test_a_certificate_that_is_not_accepted_is_permanent(tmp_path):
    import subprocess

    if shutil.which("openssl") is None:
        pytest.skip("openssl isn't installed")
    import ssl

    words = [
        "openssl",
        "req",
        "-x509",
        "-newkey",
        "rsa:2048",
        "-nodes",
        "-days",
        "1",
        "-subj",
        "/CN=x",
        "-keyout",
        "k.pem",
        "-out",
        "c.pem",
    ]
    subprocess.run(words, cwd=tmp_path, check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "c.pem", tmp_path / "k.pem")
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def serve() -> None:
            while True:
                try:
                    connection, _ = listening.accept()
                except OSError:
                    return
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 0, 0))
                try:
                    context.wrap_socket(connection, server_side=True).close()
                except OSError:
                    connection.close()

        threading.Thread(target=serve, daemon=True).start()
        port = listening.getsockname()[1]
        with within(10), pytest.raises(DataError, match="TLS certificate isn't accepted"):
            open_source(f"https://127.0.0.1:{port}/x.tar", QUICK).num_bytes()


def test_an_index_as_it_is_written_stays_far_below_the_limit():
    row = json.dumps(["speaker-0123/chapter-0123/utterance-000123", 12.345, "en", 10**10, 10**6, 10**10, 10**3, True])
    assert len(row) * 100_000 < shards._MAX_INDEX_BYTES
