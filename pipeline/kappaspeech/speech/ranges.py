"""Ranges of many files, asked for together and waited for one by one: near ones of a far file come in one request."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import cast

from kappaspeech.errors import DataError
from kappaspeech.speech.source import FarSource, Source

Request = tuple[Source, int, int]
"""Source, offset and size."""

# About as many bytes as arrive in the time that a request of its own takes.
_LARGEST_GAP_BYTES = 64 << 10
# Beyond this, requests side by side are faster than one.
_LARGEST_REQUEST_BYTES = 1 << 20


class NearRange:
    """A range that its source expects to be read."""

    def __init__(self, source: Source, offset: int, size: int) -> None:
        self._source, self._place = source, (offset, size)

    def wait(self) -> bytes | Exception:
        """The range, or why it can't be had."""
        return _attempt(self._source.read, *self._place)


class FarRange:
    """A range of a request that was begun and may bring others too."""

    def __init__(self, request: _FarRequest, begin: int, end: int) -> None:
        self._request, self._begin, self._end = request, begin, end

    def wait(self) -> bytes | Exception:
        """The range, or why it can't be had."""
        return self._request.wait(self._begin, self._end)

    def give_up(self) -> None:
        """Let the request go: nobody waits for any of its ranges."""
        self._request.give_up()


class _FarRequest:
    def __init__(self, source: FarSource, begin: int, end: int, future: Future[bytes]) -> None:
        self._source, self._begin, self._end, self._future = source, begin, end, future

    def give_up(self) -> None:
        self._future.cancel()

    def wait(self, begin: int, end: int) -> bytes | Exception:
        is_all = (begin, end) == (self._begin, self._end)
        try:
            content = self._future.result()
        except EOFError as error:
            # others of its ranges may lie before the file's end
            return error if is_all else _attempt(self._source.read, begin, end - begin)
        except DataError as error:
            return error
        return content if is_all else content[begin - self._begin : end - self._begin]


Part = NearRange | FarRange | Exception
"""A range that was begun, or why it can't be."""


def read_many(requests: Sequence[Request]) -> list[bytes | Exception]:
    """Each of the ranges, far ones side by side; in place of one that fails, its error."""
    return wait_for(begin_many(requests))


def wait_for(parts: Sequence[Part]) -> list[bytes | Exception]:
    """The ranges that `begin_many` began."""
    return [part if isinstance(part, Exception) else part.wait() for part in parts]


def begin_many(requests: Sequence[Request]) -> list[Part]:
    """Ask for what is far of the ranges; in place of one that can't be asked for, its error."""
    parts: list[Part | None] = []
    far: dict[int, list[int]] = {}
    for index, (source, offset, size) in enumerate(requests):
        try:
            is_near = source.expect(offset, size)
        except (DataError, EOFError) as error:
            parts.append(error)
            continue
        parts.append(NearRange(source, offset, size) if is_near else None)
        if not is_near:
            far.setdefault(id(source), []).append(index)
    for indices in far.values():
        places = [(requests[index][1], requests[index][1] + requests[index][2]) for index in indices]
        begun = _begin_far(cast(FarSource, requests[indices[0]][0]), places)
        for index, part in zip(indices, begun, strict=True):
            parts[index] = part
    return [part for part in parts if part is not None]


def _begin_far(source: FarSource, ranges: Sequence[tuple[int, int]]) -> list[FarRange | Exception]:
    requests = join(ranges)
    places = [(min(ranges[i][0] for i in joined), max(ranges[i][1] for i in joined)) for joined in requests]
    try:
        futures = source.begin([(begin, end - begin) for begin, end in places])
    except DataError as error:
        return [error] * len(ranges)
    begun: dict[int, FarRange] = {}
    for joined, place, future in zip(requests, places, futures, strict=True):
        request = _FarRequest(source, *place, future)
        begun.update((i, FarRange(request, *ranges[i])) for i in joined)
    return [begun[i] for i in range(len(ranges))]


def join(ranges: Sequence[tuple[int, int]]) -> list[list[int]]:
    """The ranges (begin, end) of a file that one request each brings: the indices of neighbours, in their order in the file.

    What lies in another range isn't asked for again, and at least half of what a request brings was wanted.
    """
    requests: list[list[int]] = []
    start = reached = wanted = 0
    for index in sorted(range(len(ranges)), key=ranges.__getitem__):
        begin, end = ranges[index]
        new = max(0, end - max(begin, reached))
        is_near = begin - reached <= _LARGEST_GAP_BYTES and max(end, reached) - start <= 2 * (wanted + new)
        if requests and is_near and (end <= reached or end - start <= _LARGEST_REQUEST_BYTES):
            requests[-1].append(index)
            wanted, reached = wanted + new, max(end, reached)
        else:
            requests.append([index])
            start, reached, wanted = begin, end, end - begin
    return requests


def _attempt(read: Callable[[int, int], bytes], offset: int, size: int) -> bytes | Exception:
    try:
        return read(offset, size)
    except (DataError, EOFError) as error:
        return error
