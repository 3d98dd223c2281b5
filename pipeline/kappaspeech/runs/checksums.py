"""CRC-32 of a file from the checksums of its parts, which threads and ranks compute beside each other."""

from __future__ import annotations

import threading
import zlib
from collections import deque
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from kappaspeech.outside import read_into
from kappaspeech.processors import count_cores

# CRC-32's polynomial, its coefficient of the highest power in the lowest bit
_POLYNOMIAL = 0xEDB88320
_ONE, _X = 1 << 31, 1 << 30
_BLOCK_BYTES = 1 << 24
_MOST_THREADS = 4


class Span(NamedTuple):
    """The CRC-32 of a file's bytes from `begin` to `end`."""

    begin: int
    end: int
    crc32: int


def count_threads() -> int:
    """The threads in which a rank reads, writes and sums up at once; a disk is busy with few."""
    return min(_MOST_THREADS, count_cores())


def join(spans: Iterable[Span]) -> Span:
    """The checksum of all bytes of spans that follow each other, in any order. Raises `ValueError` on a gap or an overlap."""
    first, *others = sorted(spans)
    begin, end, checksum = first
    for span in others:
        if span.begin != end:
            raise ValueError(f"bytes {end} to {span.begin} are there twice or not at all")
        checksum = combine(checksum, span.crc32, span.end - span.begin)
        end = span.end
    return Span(begin, end, checksum)


def combine(first: int, second: int, second_bytes: int) -> int:
    """The CRC-32 of bytes whose first part has one checksum, and whose other part of `second_bytes` has the other.

    The first counts as a polynomial over two elements that the other part's bits shift: zlib's crc32_combine, which Python lacks.
    """
    return _multiply(_shift(second_bytes), first) ^ second


@lru_cache(maxsize=1024)
def _shift(num_bytes: int) -> int:
    """x to the power of the number of bits, by squaring."""
    power, square, num_bits = _ONE, _X, 8 * num_bytes
    while num_bits:
        if num_bits & 1:
            power = _multiply(power, square)
        square = _multiply(square, square)
        num_bits >>= 1
    return power


def _multiply(first: int, second: int) -> int:
    """The product modulo the polynomial."""
    product, bit = 0, _ONE
    while bit:
        if first & bit:
            product ^= second
        second = (second >> 1) ^ (_POLYNOMIAL if second & 1 else 0)
        bit >>= 1
    return product


def read_checksum(path: Path, begin: int, end: int) -> Span:
    """The checksum of a file's bytes, which threads read in blocks. Raises `OSError`, also if the file ends before."""
    waiting = deque((start, min(start + _BLOCK_BYTES, end)) for start in range(begin, end, _BLOCK_BYTES))
    spans = [Span(begin, begin, 0)]
    failures: list[OSError] = []
    with path.open("rb") as file:

        def read() -> None:
            buffer = memoryview(bytearray(min(_BLOCK_BYTES, end - begin)))
            while not failures:
                try:
                    start, stop = waiting.popleft()
                except IndexError:
                    return
                try:
                    block = buffer[: stop - start]
                    if (count := read_into(block, file.fileno(), start)) < len(block):
                        raise OSError(f"{path} ends at byte {start + count}")
                    spans.append(Span(start, stop, zlib.crc32(block)))
                except OSError as error:
                    failures.append(error)

        threads = [threading.Thread(target=read) for _ in range(min(count_threads(), len(waiting)))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    if failures:
        raise failures[0]
    return join(spans)
