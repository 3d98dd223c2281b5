"""Ranges that are asked for together: which requests they become, how many are under way, and what one that fails costs."""

from __future__ import annotations

import numpy as np
import pytest

from kappaspeech.errors import DataError
from kappaspeech.speech.ranges import begin_many, join, read_many
from kappaspeech.speech.remote import _MOST_IN_FLIGHT
from kappaspeech.speech.source import ReadOptions
from kappaspeech.speech.sources import open_source
from tests.web import FaultyServer, within

QUICK = ReadOptions(attempts=3, stall_seconds=5.0)
KIB = 1 << 10


@pytest.mark.parametrize(
    ("ranges", "requests"),
    [
        ([], []),
        ([(5, 5)], [[0]]),
        # neighbours, in whatever order they are wanted
        ([(200, 300), (0, 100), (100, 200)], [[1, 2, 0]]),
        # half of a request was wanted, and no more is brought with it
        ([(0, 10), (30, 40)], [[0, 1]]),
        ([(0, 10), (31, 41)], [[0], [1]]),
        ([(0, 10), (20, 30), (50, 60)], [[0, 1, 2]]),
        # a gap that takes longer than a request of its own
        ([(0, 100 * KIB), (164 * KIB, 264 * KIB)], [[0, 1]]),
        ([(0, 100 * KIB), (164 * KIB + 1, 264 * KIB)], [[0], [1]]),
        # the same twice, and one within another
        ([(0, 50), (0, 50), (10, 20), (40, 60)], [[0, 1, 2, 3]]),
        # long ones go side by side
        ([(0, 600 * KIB), (600 * KIB, 1100 * KIB), (1100 * KIB, 1200 * KIB)], [[0], [1, 2]]),
        ([(0, 3000 * KIB), (10, 20)], [[0, 1]]),
    ],
)
def test_ranges_become_these_requests(ranges, requests):
    assert join(ranges) == requests


def test_every_range_is_in_one_request_of_which_half_is_wanted():
    generator = np.random.default_rng(0)
    for spread in (10_000, 1_000_000, 100_000_000):
        begins = generator.integers(0, spread, 300)
        ranges = [(int(begin), int(begin + size)) for begin, size in zip(begins, generator.integers(1, 90_000, 300), strict=True)]
        requests = join(ranges)
        assert sorted(index for request in requests for index in request) == list(range(300))
        for request in requests:
            begin, end = min(ranges[i][0] for i in request), max(ranges[i][1] for i in request)
            wanted = np.zeros(end - begin, dtype=bool)
            for i in request:
                wanted[ranges[i][0] - begin : ranges[i][1] - begin] = True
            assert 2 * wanted.sum() >= end - begin
            assert end - begin <= 1 << 20 or len(request) == 1


@pytest.fixture
def server(tmp_path, monkeypatch):
    monkeypatch.setattr("kappaspeech.speech.remote._FIRST_PAUSE_SECONDS", 0.02)
    for number in range(3):
        content = np.random.default_rng(number).bytes(400_000)
        (tmp_path / f"{number}.tar").write_bytes(content)
    with FaultyServer(tmp_path) as running:
        yield running


def sources(server: FaultyServer) -> list:
    return [open_source(f"{server.url}/{number}.tar", QUICK) for number in range(3)]


def content(server: FaultyServer, number: int, offset: int, size: int) -> bytes:
    return (server.folder / f"{number}.tar").read_bytes()[offset : offset + size]


PLACES = [(0, 1000, 500), (1, 0, 100), (0, 1500, 500), (2, 300_000, 100_000), (0, 300_000, 1000), (1, 150, 50)]


def test_near_ranges_of_a_file_are_asked_for_at_once_and_come_as_they_were_wanted(server):
    opened = sources(server)
    found = read_many([(opened[number], *place) for number, *place in PLACES])
    assert found == [content(server, *place) for place in PLACES]
    asked = [("/0.tar", 1000, 2000), ("/0.tar", 300_000, 301_000), ("/1.tar", 0, 200), ("/2.tar", 300_000, 400_000)]
    assert sorted(server.ranges) == asked


def test_as_many_requests_are_under_way_as_may_be_and_never_more(server):
    opened = sources(server)
    places = [(number, offset, 10) for number in range(3) for offset in range(0, 400_000, 4_000)]
    # none is answered before this many are there
    server.wanted_at_once = _MOST_IN_FLIGHT
    with within(60):
        found = read_many([(opened[number], *place) for number, *place in places])
    assert found == [content(server, *place) for place in places]
    assert len(server.ranges) == len(places) > 2 * _MOST_IN_FLIGHT
    assert server.most_at_once == _MOST_IN_FLIGHT


def test_what_is_begun_is_asked_for_before_anybody_waits_for_it(server):
    opened = sources(server)
    server.wanted_at_once = 4
    parts = begin_many([(opened[number], *place) for number, *place in PLACES])
    with server.arrived:
        assert server.arrived.wait_for(lambda: server.most_at_once == 4, timeout=30)
    # the last first
    assert [part.wait() for part in parts[::-1]] == [content(server, *place) for place in PLACES[::-1]]
    assert len(server.ranges) == 4


@pytest.mark.parametrize("faults", [["500"], ["reset"], ["short", "500"], ["moved"]])
def test_a_request_that_fails_once_costs_the_others_nothing(server, faults):
    opened = sources(server)
    server.faults = list(faults)
    found = read_many([(opened[number], *place) for number, *place in PLACES])
    assert found == [content(server, *place) for place in PLACES]


def test_a_request_that_goes_on_failing_is_named_and_the_others_are_read(server):
    opened = sources(server)
    server.broken_bytes = {300_500}
    found = read_many([(opened[number], *place) for number, *place in PLACES])
    assert [index for index, part in enumerate(found) if isinstance(part, Exception)] == [3, 4]
    for index, name in ((3, "2.tar"), (4, "0.tar")):
        assert isinstance(found[index], DataError)
        assert f"{name} can't be read after 3 attempts: the server answers 500" in str(found[index])
    assert found[:3] + found[5:] == [content(server, *place) for place in PLACES[:3] + PLACES[5:]]
    assert [begin for _, begin, _ in server.ranges].count(300_000) == 6


@pytest.mark.parametrize("is_damaged", [True, False])
def test_a_kept_block_that_is_lost_before_it_is_waited_for_is_fetched_again(server, tmp_path, is_damaged):
    options = ReadOptions(attempts=3, stall_seconds=5.0, cache_dir=str(tmp_path / "cache"))
    source = open_source(f"{server.url}/0.tar", options)
    source.read(0, 10)
    (part,) = begin_many([(source, 1000, 500)])
    for block in (tmp_path / "cache").rglob("*.block"):
        if is_damaged:
            damaged = bytearray(block.read_bytes())
            damaged[-399_000] ^= 1
            block.write_bytes(damaged)
        else:
            block.unlink()
    assert part.wait() == content(server, 0, 1000, 500)
    assert len(server.ranges) == 2


def test_a_file_that_can_not_be_asked_for_fails_its_own_ranges_alone(server, monkeypatch):
    def missing(*_: object) -> None:
        raise ImportError("No module named 'gcsfs'")

    monkeypatch.setattr("kappaspeech.speech.remote._make_file_system", missing)
    monkeypatch.setattr("kappaspeech.speech.remote._systems", {})
    local = open_source(str(server.folder / "1.tar"), QUICK)
    found = read_many([(open_source("gs://bucket/x.tar", QUICK), 0, 10), (local, 0, 10)])
    assert isinstance(found[0], DataError)
    assert found[1] == content(server, 1, 0, 10)


def test_of_ranges_in_one_request_those_before_the_files_end_are_read(monkeypatch):
    import fsspec.asyn as fsspec

    class Store(fsspec.AsyncFileSystem):
        async def _info(self, _path, **_):
            return {"size": 1000, "etag": "a"}

        async def _cat_file(self, _path, start=None, end=None, **_):
            return bytes(range(100))[start:end]

    store = Store(skip_instance_cache=True)
    monkeypatch.setattr("kappaspeech.speech.remote._systems", {("gs", QUICK.stall_seconds): store})
    source = open_source("gs://speech/x.tar", QUICK)
    first, last = read_many([(source, 80, 10), (source, 90, 20)])
    assert first == bytes(range(80, 90))
    assert isinstance(last, EOFError)
