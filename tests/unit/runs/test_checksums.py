"""Checksums of parts, put together."""

from __future__ import annotations

import itertools
import random
import zlib

import pytest

from kappaspeech.runs import checksums
from kappaspeech.runs.checksums import Span, combine, join, read_checksum

CONTENT = random.Random(0).randbytes(10_007)


def spans(places: list[int]) -> list[Span]:
    return [Span(begin, end, zlib.crc32(CONTENT[begin:end])) for begin, end in itertools.pairwise(places)]


@pytest.mark.parametrize("place", [0, 1, 255, 4096, 10_006, 10_007])
def test_two_parts_checksums_make_the_wholes(place):
    first, second = CONTENT[:place], CONTENT[place:]
    assert combine(zlib.crc32(first), zlib.crc32(second), len(second)) == zlib.crc32(CONTENT)


def test_spans_are_joined_in_any_order():
    found = spans([7, 7, 8, 100, 5000, 10_007])
    random.Random(1).shuffle(found)
    assert join(found) == Span(7, 10_007, zlib.crc32(CONTENT[7:]))


@pytest.mark.parametrize("places", [([0, 10], [11, 20]), ([0, 10], [9, 20]), ([0, 10], [0, 10])])
def test_a_gap_or_an_overlap_is_no_file(places):
    with pytest.raises(ValueError, match="there twice or not at all"):
        join([span for part in places for span in spans(part)])


@pytest.mark.parametrize(("begin", "end"), [(0, 10_007), (3, 9_999), (64, 64), (9_000, 9_001)])
def test_threads_read_what_one_would(tmp_path, monkeypatch, begin, end):
    monkeypatch.setattr(checksums, "_BLOCK_BYTES", 1000)
    monkeypatch.setattr(checksums, "count_threads", lambda: 3)
    (tmp_path / "file").write_bytes(CONTENT)
    assert read_checksum(tmp_path / "file", begin, end) == Span(begin, end, zlib.crc32(CONTENT[begin:end]))


def test_a_file_that_ends_early_is_an_error(tmp_path):
    (tmp_path / "file").write_bytes(CONTENT)
    with pytest.raises(OSError, match="file ends at byte 10007"):
        read_checksum(tmp_path / "file", 0, 10_008)
