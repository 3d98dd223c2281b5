"""Files of web servers, asked for by ranges: what a server says is compared with what it sends, and no more is taken than that.

Over the session of fsspec's HTTP file system, whose own functions take any failure for a missing file, and any body as it comes.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

_IDENTITY = {"Accept-Encoding": "identity"}
_COMPRESSIONS = {"gzip", "x-gzip", "compress", "deflate", "br", "zstd"}
_RANGE = re.compile(r"bytes (?:(\d{1,19})-(\d{1,19})|\*)/(\d{1,19}|\*)", re.IGNORECASE)
# RFC 3986: reserved and unreserved characters, and percent signs before two digits
_WRITTEN_OUT = re.compile(r"(?:[A-Za-z0-9._~:/?#\[\]@!$&'()*+,;=-]|%[0-9A-Fa-f]{2})+")
_OK, _PARTIAL, _BEYOND = 200, 206, 416
_ERRORS, _SERVER_ERRORS, _NOT_IMPLEMENTED = 400, 500, 501
# What a server may get over: it timed out, is not ready, or is asked too often.
_BUSY = (408, 425, 429)
_CAUSES = {
    401: "the server wants credentials (401)",
    403: "the server refuses it (403): the credentials lack the right to it, or the URL's signature is wrong or has expired",
    404: "there is no such file (404)",
    410: "the file is gone (410)",
    429: "the server is asked too often (429)",
}


class ReadProblemError(Exception):
    """The reason why a file can't be read. `is_permanent`: asking again won't help."""

    def __init__(self, cause: str, *, is_permanent: bool) -> None:
        super().__init__(cause)
        self.is_permanent = is_permanent


@dataclass(frozen=True)
class Description:
    """The description of a whole file in an answer's headers: its size in bytes if it is known, and a mark of its version."""

    num_bytes: int | None
    etag: str
    modified: str

    @property
    def stamp(self) -> str:
        return self.etag or self.modified

    def is_other_than(self, earlier: Description) -> bool:
        """Return whether the file was replaced since `earlier`. Servers that share a name may each have an ETag of their own."""
        if None not in (self.num_bytes, earlier.num_bytes) and self.num_bytes != earlier.num_bytes:
            return True
        pairs = [(self.etag, earlier.etag), (self.modified, earlier.modified)]
        known = [one != other for one, other in pairs if one and other]
        return bool(known) and all(known)


def _target(system: Any, url: str) -> Any:
    """The URL for aiohttp: a percent-encoded one stays as it is, because a signature covers each of its letters."""
    if not _WRITTEN_OUT.fullmatch(url):
        return system.encode_url(url)
    from yarl import URL

    return URL(url, encoded=True)


async def describe(system: Any, url: str) -> Description:
    """A file's size and version. Raises `ReadProblemError`, and what aiohttp raises."""
    session = await system.set_session()
    target = _target(system, url)
    async with session.head(target, headers=_IDENTITY, allow_redirects=True) as answer:
        if answer.status < _ERRORS:
            found = _description(answer.headers, _length(answer.headers))
            if found.num_bytes is not None:
                return found
        elif answer.status in _BUSY or (answer.status >= _SERVER_ERRORS and answer.status != _NOT_IMPLEMENTED):
            raise _refusal(answer.status, answer.reason)
    # a URL that is signed for GET answers nothing else
    async with session.get(target, headers={**_IDENTITY, "Range": "bytes=0-0"}) as answer:
        if answer.status >= _ERRORS and answer.status != _BEYOND:
            raise _refusal(answer.status, answer.reason)
        place = _RANGE.fullmatch(answer.headers.get("Content-Range", ""))
        if place is None:
            return _description(answer.headers, _length(answer.headers) if answer.status == _OK else None)
        return _description(answer.headers, None if place[3] == "*" else int(place[3]))


async def fetch(system: Any, url: str, begin: int, end: int) -> tuple[bytes, Description]:
    """Bytes `begin` to `end`, or as many of them as the server sends at once, and what it says of the file.

    Raises `ReadProblemError`, and what aiohttp raises.
    """
    session = await system.set_session()
    async with session.get(_target(system, url), headers={**_IDENTITY, "Range": f"bytes={begin}-{end - 1}"}) as answer:
        if answer.status == _BEYOND:
            place = _RANGE.fullmatch(answer.headers.get("Content-Range", ""))
            size = f"it has {place[3]} bytes" if place and place[3] != "*" else "it has fewer bytes than the server said"
            raise ReadProblemError(f"{size}, and bytes {begin} to {end} are wanted (416)", is_permanent=True)
        if answer.status not in (_OK, _PARTIAL):
            raise _refusal(answer.status, answer.reason)
        # object stores may keep a word of how a file once came to them (aws-chunked), and send it plain
        codings = {coding.strip().lower() for coding in answer.headers.get("Content-Encoding", "").split(",")}
        if codings & _COMPRESSIONS:
            raise ReadProblemError("the server sends it compressed, so it can't be read by ranges", is_permanent=True)
        if answer.status == _OK and begin:
            raise _no_ranges()
        total = _length(answer.headers) if answer.status == _OK else check_range(answer.headers, begin, end)
        parts, num_bytes = [], 0
        async for part in answer.content.iter_any():
            parts.append(part)
            num_bytes += len(part)
            if num_bytes > end - begin:
                if answer.status == _OK:
                    raise _no_ranges()
                raise ReadProblemError("the server sends more than it was asked for", is_permanent=True)
        return b"".join(parts), _description(answer.headers, total)


def check_range(headers: Mapping[str, str], begin: int, end: int) -> int | None:
    """The file's size by an answer's Content-Range. Raises `ReadProblemError` if it is of another range than was asked for."""
    said = headers.get("Content-Range")
    if said is None:
        return None
    place = _RANGE.fullmatch(said.strip())
    # a proxy that has kept another answer may have the right one next time
    if place is None or place[1] is None or int(place[1]) != begin or int(place[2]) >= end:
        shown = said[:60]
        raise ReadProblemError(f"bytes {begin} to {end - 1} were asked for, and '{shown}' came", is_permanent=False)
    return None if place[3] == "*" else int(place[3])


def _length(headers: Mapping[str, str]) -> int | None:
    length = headers.get("Content-Length", "")
    is_plain = headers.get("Content-Encoding", "identity") in ("identity", "")
    return int(length) if is_plain and re.fullmatch(r"\d{1,19}", length) else None


def _description(headers: Mapping[str, str], num_bytes: int | None) -> Description:
    etag = headers.get("ETag", "").removeprefix("W/").strip('"')
    return Description(num_bytes, etag, headers.get("Last-Modified", ""))


def _no_ranges() -> ReadProblemError:
    return ReadProblemError("the server ignores Range requests, so single samples can't be read from it", is_permanent=True)


def _refusal(status: int, reason: str | None) -> ReadProblemError:
    cause = _CAUSES.get(status, f"the server answers {status} {(reason or '')[:60]}".rstrip())
    return ReadProblemError(cause, is_permanent=status < _SERVER_ERRORS and status not in _BUSY)
