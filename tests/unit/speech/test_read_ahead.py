"""Micro-batches that are read ahead: the samples that a reader gives, asked for early, and no more bytes than may be held."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from kappaspeech.speech.corpus import Corpus, SpeechDataset
from kappaspeech.speech.read_ahead import ReadAhead
from kappaspeech.speech.sample_reader import SampleReader, SampleRef
from kappaspeech.speech.source import ReadOptions
from tests.web import FaultyServer

QUICK = ReadOptions(attempts=3, stall_seconds=5.0)


@pytest.fixture
def server(home, tmp_path):
    with FaultyServer(Path(shutil.copytree(home / "shards/train", tmp_path / "shards"))) as running:
        yield running


def make_batches(where: str, size: int) -> list[list[SampleRef]]:
    corpus = Corpus(SpeechDataset(where), QUICK)
    refs = [corpus.ref(index) for index in range(corpus.num_samples)]
    # no neighbours in one micro-batch
    stride = len(refs) // size
    return [refs[start : stride * size : stride] for start in range(stride)]


def names(server: FaultyServer) -> str:
    return "{" + ",".join(sorted(path.name for path in server.folder.glob("*.tar"))) + "}"


def num_asked(server: FaultyServer, batch: list[SampleRef]) -> int:
    """The number of a micro-batch's samples that were asked for."""
    asked = [(path, begin, end) for path, begin, end in server.ranges]
    return sum(
        any(ref.where.endswith(path) and begin <= ref.entry.audio_offset < end for path, begin, end in asked) for ref in batch
    )


def num_bytes(batch: list[SampleRef]) -> int:
    return sum(ref.entry.audio_bytes + ref.entry.text_bytes for ref in batch)


def waveforms(samples: list) -> list[tuple[str, str, bytes]]:
    return [(sample.key, sample.transcript, sample.waveform.tobytes()) for sample in samples]


@pytest.mark.parametrize("order", [1, -1])
def test_samples_are_those_of_a_reader_in_whatever_order_they_are_taken(server, order):
    local = SampleReader(QUICK)
    batches = make_batches(f"{server.url}/{names(server)}", 4)
    expected = [waveforms(local.read(batch)) for batch in make_batches(str(server.folder / "*.tar"), 4)]
    ahead = ReadAhead(SampleReader(QUICK), most_bytes=2 * num_bytes(batches[0]))
    planned = [ahead.plan(batch) for batch in batches]
    assert [waveforms(ahead.take(batch)) for batch in planned[::order]] == expected[::order]


def test_the_samples_of_all_planned_micro_batches_come_in_few_requests(server):
    batches = make_batches(f"{server.url}/{names(server)}", 4)
    server.ranges.clear()
    ahead = ReadAhead(SampleReader(QUICK))
    for batch in [ahead.plan(batch) for batch in batches]:
        ahead.take(batch)
    total = sum(path.stat().st_size for path in server.folder.glob("*.tar"))
    num_shards = len(list(server.folder.glob("*.tar")))
    assert len(server.ranges) <= num_shards + total // (512 << 10) < sum(map(len, batches))
    # nothing twice
    assert sum(end - begin for _, begin, end in server.ranges) <= total


def test_no_more_is_asked_for_than_may_be_held_and_then_as_much_again(server):
    batches = make_batches(f"{server.url}/{names(server)}", 4)[:6]
    assert len(batches) == 6
    server.ranges.clear()
    reader = SampleReader(QUICK)
    ahead = ReadAhead(reader, most_bytes=sum(map(num_bytes, batches[:3])))
    planned = [ahead.plan(batch) for batch in batches]
    assert not server.ranges
    ahead.take(planned[0])
    assert [batch.begun is not None for batch in planned] == [True, True, True, False, False, False]
    ahead.take(planned[1])
    ahead.take(planned[2])
    assert planned[3].begun is not None
    # the request was begun, and may be on its way
    ahead.take(planned[3])
    assert [num_asked(server, batch) for batch in batches[:4]] == [4, 4, 4, 4]


def test_there_is_room_until_as_much_is_planned_as_may_be_asked_for_and_again_once_some_is_taken(server):
    batches = make_batches(f"{server.url}/{names(server)}", 4)[:3]
    ahead = ReadAhead(SampleReader(QUICK), most_bytes=sum(map(num_bytes, batches)))
    assert not ahead.has_room
    planned = []
    for batch in batches:
        planned.append(ahead.plan(batch))
        assert ahead.has_room == (len(planned) < 3)
    ahead.take(planned[0])
    assert ahead.has_room
    ahead.take(planned[1])
    ahead.take(planned[2])
    assert not ahead.has_room


def test_micro_batches_without_bytes_are_not_planned_for_ever(server):
    ahead = ReadAhead(SampleReader(QUICK))
    ahead.plan(make_batches(f"{server.url}/{names(server)}", 4)[0])
    for _ in range(10_000):
        if not ahead.has_room:
            break
        ahead.plan([])
    assert not ahead.has_room


def test_a_micro_batch_that_is_larger_than_what_may_be_held_is_read_alone(server):
    batches = make_batches(f"{server.url}/{names(server)}", 4)
    ahead = ReadAhead(SampleReader(QUICK), most_bytes=1)
    first, second = ahead.plan(batches[0]), ahead.plan(batches[1])
    assert len(ahead.take(first)) == 4
    assert second.begun is None
    assert len(ahead.take(second)) == 4


def test_what_lies_on_this_machine_is_read_when_it_is_taken(server):
    batches = make_batches(str(server.folder / "*.tar"), 4)
    ahead = ReadAhead(SampleReader(QUICK))
    first, second = ahead.plan(batches[0]), ahead.plan(batches[1])
    assert not ahead.has_room
    ahead.take(first)
    assert second.begun is None


def test_what_was_not_taken_is_let_go_of(server):
    batches = make_batches(f"{server.url}/{names(server)}", 4)
    ahead = ReadAhead(SampleReader(QUICK))
    first, second = ahead.plan(batches[0]), ahead.plan(batches[1])
    ahead.plan(batches[2])
    # more than ask: none is answered
    server.wanted_at_once = 1000
    ahead._begin(first)
    assert second.begun is not None
    ahead.close()
    for sample in SampleReader(QUICK).read(second.refs, second.begun):
        assert "CancelledError" in str(sample)
    with server.arrived:
        server.wanted_at_once = 0
        server.arrived.notify_all()
    assert len(ahead.take(ahead.plan(batches[3]))) == 4
