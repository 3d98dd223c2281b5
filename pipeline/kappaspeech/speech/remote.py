"""Files behind a URL, through fsspec: ranged requests that are tried again if that may help, and never wait for ever.

Credentials come from where fsspec's file systems look for them (environment, profiles, instance roles); none is named here.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import CancelledError, Future
from functools import partial
from typing import Any, TypeVar

from kappaspeech.errors import DataError
from kappaspeech.redaction import HIDDEN, is_redacted
from kappaspeech.speech import buckets, web
from kappaspeech.speech.patterns import has_glob
from kappaspeech.speech.source import ReadOptions, need_reader_of, scheme_of
from kappaspeech.speech.web import Description, ReadProblemError

T = TypeVar("T")

# A range may take its stall limit and, beyond that, as long as this rate needs.
_LEAST_BYTES_PER_SECOND = 50_000
_FIRST_PAUSE_SECONDS = 0.5
_LONGEST_PAUSE_SECONDS = 20.0
# How often a file is asked for its version if what is read of it doesn't say it.
_VERSION_INTERVAL_SECONDS = 30.0
# Requests in flight at once, of a process: servers answer in tens of milliseconds, and a connection each is kept open.
_MOST_IN_FLIGHT = 64
# A body that fits isn't held up while it arrives.
_BUFFER_BYTES = 1 << 20
_PERMANENT_STATUS = range(400, 500)
_BUSY_STATUS = (408, 425, 429)
# A server that sends less at a time than was asked for is asked for the rest, but not for ever.
_FEWEST_PARTS = 64
_SMALLEST_PART_BYTES = 64 << 10

_systems: dict[tuple[str, float], Any] = {}
_lock = threading.Lock()
# all of fsspec's file systems share one event loop
_slots = asyncio.Semaphore(_MOST_IN_FLIGHT)


def expand_remote(pattern: str, options: ReadOptions) -> list[str]:
    """The URLs of a pattern without braces: itself, or what s3 and gs list for a glob. Raises `DataError`."""
    scheme = scheme_of(pattern)
    if not has_glob(pattern):
        return [pattern]
    if scheme in ("http", "https"):
        raise DataError(f"{pattern}: web servers don't list their files. Write a brace list, as shard-{{000000..000041}}.tar.")

    async def list_files(system: Any) -> list[str]:
        return list(await system._glob(pattern))

    found = _begin(pattern, options, [lambda system: _persist(system, pattern, list_files, options, what="listed")])[0]
    return [f"{scheme}://{path}" for path in sorted(found.result())]


class RemoteSource:
    """A URL, read by ranged requests; what may pass is tried again, what can't is said at once."""

    def __init__(self, where: str, options: ReadOptions) -> None:
        if is_redacted(where):
            raise DataError(
                f"{where} is without its password or signature: it shows {HIDDEN} instead, as in what a run leaves for others. "
                "Give the URL whole, or put the run folder's secrets.json back."
            )
        self.where = where
        self._options = options
        self._is_web = scheme_of(where) in ("http", "https")
        self._described: Description | None = None
        # what the first answer said: another version's bytes are never put beside it
        self._seen: Description | None = None
        self._seen_at = 0.0
        self._looking = asyncio.Lock()

    def num_bytes(self) -> int:
        size = self._describe().num_bytes
        if size is None:
            raise DataError(f"{self.where}: the server doesn't say how large it is, so it can't be read by ranges.")
        return size

    def stamp(self) -> str:
        return self._describe().stamp

    def _describe(self) -> Description:
        if self._described is None:
            self._described = _begin(self.where, self._options, [self._look])[0].result()
            self._check_version(self._described)
        return self._described

    async def _look(self, system: Any) -> Description:
        return await _persist(system, self.where, self._ask, self._options)

    async def _ask(self, system: Any) -> Description:
        if self._is_web:
            return await web.describe(system, self.where)
        return await buckets.describe(system, self.where)

    def read(self, offset: int, size: int) -> bytes:
        return self.begin([(offset, size)])[0].result()

    def begin(self, places: Sequence[tuple[int, int]]) -> list[Future[bytes]]:
        return _begin(self.where, self._options, [partial(self._read, offset=offset, size=size) for offset, size in places])

    async def _read(self, system: Any, offset: int, size: int) -> bytes:
        content = b""
        most_parts = _FEWEST_PARTS + size // _SMALLEST_PART_BYTES
        num_parts = 0
        while len(content) < size:
            if num_parts == most_parts:
                told = f"the server sent {len(content)} of {size} bytes in {num_parts} answers"
                raise DataError(f"{self.where}: {told}; it is given up.")
            content += await self._read_part(system, offset + len(content), offset + size)
            num_parts += 1
        return content

    async def _read_part(self, system: Any, begin: int, end: int) -> bytes:
        """Read a part of a range: a server may send less than was asked for, and the rest is asked for next."""

        async def get(system: Any) -> tuple[bytes, Description | None]:
            if self._is_web:
                return await web.fetch(system, self.where, begin, end)
            return await buckets.fetch(system, self.where, begin, end)

        part, description = await _persist(system, self.where, get, self._options, num_bytes=end - begin)
        if description is not None:
            self._check_version(description)
        else:
            await self._look_again(system)
        if not part:
            raise EOFError(f"{self.where} ends before byte {end}")
        if len(part) > end - begin:
            raise DataError(f"{self.where}: the server ignores Range requests, so single samples can't be read from it.")
        return part

    async def _look_again(self, system: Any) -> None:
        """Ask for the version, now and then: after the reading, which may have been of the new one. Of many ranges, one asks."""
        async with self._looking:
            if time.monotonic() - self._seen_at > _VERSION_INTERVAL_SECONDS:
                self._check_version(await self._look(system))

    def _check_version(self, now: Description) -> None:
        self._seen_at = time.monotonic()
        if self._seen is None:
            self._seen = now
        elif now.is_other_than(self._seen):
            raise DataError(
                f"{self.where} was replaced while it was read: it had {self._seen.num_bytes} bytes and version "
                f"'{self._seen.stamp}', and has {now.num_bytes} and '{now.stamp}'. Put it back, or index it again."
            )
        elif self._seen.num_bytes is None:
            self._seen = now

    def expect(self, offset: int, size: int) -> bool:  # noqa: ARG002 - nothing of it is on this machine
        return False

    def confirms(self, claim: str, check: Callable[[], bool]) -> bool:  # noqa: ARG002 - nothing is remembered
        return check()


def _begin(where: str, options: ReadOptions, works: Sequence[Callable[[Any], Coroutine[Any, Any, T]]]) -> list[Future[T]]:
    """Begin all `works` with the file system of a URL, beside everything else that was begun. Raises `DataError` if its library
    is missing."""
    system = _file_system(scheme_of(where), options.stall_seconds)
    futures: list[Future[T]] = [Future() for _ in works]

    def start() -> None:
        for future, work in zip(futures, works, strict=True):
            task = system.loop.create_task(work(system))
            task.add_done_callback(partial(_hand_over, future))
            future.add_done_callback(partial(_let_go, task, system.loop))

    # once for all of them: each time, this thread and the loop's take turns
    system.loop.call_soon_threadsafe(start)
    return futures


def _hand_over(future: Future[T], task: asyncio.Task[T]) -> None:
    """Give what a task returned or raised to whoever waits in another thread."""
    if not future.set_running_or_notify_cancel():
        return
    if task.cancelled():
        future.set_exception(CancelledError())
    elif error := task.exception():
        future.set_exception(error)
    else:
        future.set_result(task.result())


def _let_go(task: asyncio.Task[T], loop: asyncio.AbstractEventLoop, future: Future[T]) -> None:
    """End a task that nobody waits for."""
    if future.cancelled():
        loop.call_soon_threadsafe(task.cancel)


async def _persist(
    system: Any,
    where: str,
    ask: Callable[[Any], Coroutine[Any, Any, T]],
    options: ReadOptions,
    *,
    what: str = "read",
    num_bytes: int = 0,
) -> T:
    """Call `ask` with the URL's file system, again if that may help. Raises `DataError`, which names the cause."""
    limit = options.stall_seconds + num_bytes / _LEAST_BYTES_PER_SECOND
    pause = _FIRST_PAUSE_SECONDS
    for attempt in range(1, options.attempts + 1):
        try:
            # to wait for a slot is no stall of the server's
            async with _slots:
                return await asyncio.wait_for(ask(system), limit)
        # each file system raises its own library's errors
        except Exception as error:
            cause, is_permanent = explain(error)
            if is_permanent:
                raise DataError(f"{where} can't be {what}: {cause}.") from error
            if attempt == options.attempts:
                raise DataError(f"{where} can't be {what} after {attempt} attempts: {cause}.") from error
        await asyncio.sleep(pause)
        pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)
    raise AssertionError


def _file_system(scheme: str, stall_seconds: float) -> Any:
    """fsspec's file system for a scheme, one a process. Raises `DataError` if its library isn't installed."""
    key = (scheme, stall_seconds)
    with _lock:
        if key not in _systems:
            need_reader_of(scheme)
            _systems[key] = _make_file_system(scheme, stall_seconds)
        return _systems[key]


def _make_file_system(scheme: str, stall_seconds: float) -> Any:
    import fsspec

    # fsspec's own memory of file systems would keep one that once found no credentials
    options: dict[str, Any] = {"use_listings_cache": False, "skip_instance_cache": True}
    if scheme in ("http", "https"):
        import aiohttp

        timeout = aiohttp.ClientTimeout(total=None, sock_connect=stall_seconds, sock_read=stall_seconds)
        options["client_kwargs"] = {"timeout": timeout, "read_bufsize": _BUFFER_BYTES}
    elif scheme == "s3":
        limits = {"connect_timeout": stall_seconds, "read_timeout": stall_seconds, "retries": {"max_attempts": 1}}
        options["config_kwargs"] = {**limits, "max_pool_connections": _MOST_IN_FLIGHT}
    return fsspec.filesystem(scheme, **options)


def explain(error: Exception) -> tuple[str, bool]:
    """Return a library's error as part of a sentence, and whether another try would only repeat it."""
    if isinstance(error, ReadProblemError):
        return str(error), error.is_permanent
    names = {kind.__name__ for kind in type(error).__mro__}
    if "TooManyRedirects" in names:
        return "the server redirects in a circle, or too often", True
    if "ClientConnectorCertificateError" in names or _is_certificate(error):
        return f"its TLS certificate isn't accepted ({_first_line(error)})", True
    if "InvalidURL" in names or isinstance(error, (ValueError, TypeError)):
        return f"that is no URL that can be asked for ({_first_line(error)})", True
    if "ClientConnectorDNSError" in names:
        return f"its host's name is unknown here ({_first_line(error)})", False
    # asyncio has one of its own before Python 3.11
    if names & {"TimeoutError", "FSTimeoutError"}:
        return "no answer came in time", False
    status = getattr(error, "status", None)
    if isinstance(status, int):
        return _first_line(error), status in _PERMANENT_STATUS and status not in _BUSY_STATUS
    return _first_line(error), isinstance(error, (FileNotFoundError, PermissionError)) or "NoCredentialsError" in names


def _is_certificate(error: BaseException | None) -> bool:
    import ssl

    return isinstance(error, ssl.SSLCertVerificationError) or isinstance(
        getattr(error, "certificate_error", None), ssl.SSLCertVerificationError
    )


def _first_line(error: Exception) -> str:
    """The first line of an error; never more, because a library's message may quote a request's headers."""
    return (str(error).strip().splitlines() or [""])[0][:200].rstrip(".") or type(error).__name__
