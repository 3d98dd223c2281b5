"""Files behind a URL, through fsspec: ranged requests that are tried again where that may help, and never wait for ever.

Credentials come from where fsspec's file systems look for them (environment, profiles, instance roles); none is named here.
"""

from __future__ import annotations

import glob
import threading
import time
from typing import Any
from urllib.parse import urlsplit

from pipeline.errors import DataError
from pipeline.speech.sources import ReadOptions

_EXTRAS = {"http": "http", "https": "http", "s3": "s3", "gs": "gs"}
# A range may take its stall limit and, beyond that, as long as this rate needs.
_LEAST_BYTES_PER_SECOND = 50_000
_FIRST_PAUSE_SECONDS = 0.5
_LONGEST_PAUSE_SECONDS = 20.0
_PERMANENT_STATUS = range(400, 500)
_BUSY_STATUS = (408, 425, 429)

_systems: dict[tuple[str, float], Any] = {}
_lock = threading.Lock()


def expand_remote(pattern: str, options: ReadOptions) -> list[str]:
    """The URLs that a pattern without braces stands for: itself, or what s3 and gs list for a glob. Raises `DataError`."""
    scheme = urlsplit(pattern).scheme
    if not glob.has_magic(pattern):
        return [pattern]
    if scheme in ("http", "https"):
        raise DataError(f"{pattern}: web servers don't list their files. Write a brace list, as shard-{{000000..000041}}.tar.")
    system = _file_system(scheme, options.stall_seconds)
    try:
        found = sorted(system.glob(pattern))
    except Exception as error:
        # each file system raises its own library's errors
        raise DataError(f"{pattern} can't be listed: {_first_line(error)}") from error
    return [f"{scheme}://{path}" for path in found]


class RemoteSource:
    """A URL, read by ranged requests; what may pass is tried again, what can't is said at once."""

    def __init__(self, where: str, options: ReadOptions) -> None:
        self.where = where
        self._options = options
        self._scheme = urlsplit(where).scheme
        self._info: dict[str, Any] | None = None

    def num_bytes(self) -> int:
        size = self._describe().get("size")
        if size is None:
            raise DataError(f"{self.where}: the server doesn't say how large it is, so it can't be read by ranges.")
        return int(size)

    def stamp(self) -> str:
        info = self._describe()
        found = next((info[name] for name in ("ETag", "etag", "md5Hash", "Last-Modified", "LastModified") if info.get(name)), "")
        return str(found).strip('"')

    def _describe(self) -> dict[str, Any]:
        if self._info is None:
            self._info = self._try("_info", 0)
        return self._info

    def read(self, offset: int, size: int) -> bytes:
        content = b""
        while len(content) < size:
            left = size - len(content)
            part: bytes = self._try("_cat_file", left, start=offset + len(content), end=offset + size)
            if not part:
                raise EOFError(f"{self.where} ends before byte {offset + size}")
            if len(part) > left:
                raise DataError(f"{self.where}: the server ignores Range requests, so single samples can't be read from it.")
            # a server may send less than was asked for: the rest is asked for next
            content += part
        return content

    def read_near(self, offset: int, size: int) -> bytes | None:  # noqa: ARG002 - nothing of it is on this machine
        return None

    def _try(self, method: str, size: int, **arguments: int) -> Any:
        system = _file_system(self._scheme, self._options.stall_seconds)
        from fsspec.asyn import sync

        limit = self._options.stall_seconds + size / _LEAST_BYTES_PER_SECOND
        pause = _FIRST_PAUSE_SECONDS
        for attempt in range(1, self._options.attempts + 1):
            try:
                return sync(system.loop, getattr(system, method), self.where, timeout=limit, **arguments)
            except Exception as error:
                if _is_permanent(error):
                    raise DataError(f"{self.where} can't be read: {_first_line(error)}") from error
                if attempt == self._options.attempts:
                    raise DataError(f"{self.where} can't be read after {attempt} attempts: {_first_line(error)}") from error
            time.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)
        raise AssertionError


def _file_system(scheme: str, stall_seconds: float) -> Any:
    """fsspec's file system for a scheme, one a process. Raises `DataError` where its library isn't installed."""
    key = (scheme, stall_seconds)
    with _lock:
        if key not in _systems:
            try:
                _systems[key] = _make_file_system(scheme, stall_seconds)
            except ImportError as error:
                raise DataError(
                    f"Reading {scheme}:// needs a library that isn't installed ({error}): "
                    f"pip install 'kappaspeech[{_EXTRAS[scheme]}]'."
                ) from error
        return _systems[key]


def _make_file_system(scheme: str, stall_seconds: float) -> Any:
    import fsspec

    # fsspec's own memory of file systems would keep one that once found no credentials
    options: dict[str, Any] = {"use_listings_cache": False, "skip_instance_cache": True}
    if scheme in ("http", "https"):
        import aiohttp

        timeout = aiohttp.ClientTimeout(total=None, sock_connect=stall_seconds, sock_read=stall_seconds)
        options["client_kwargs"] = {"timeout": timeout}
    elif scheme == "s3":
        limits = {"connect_timeout": stall_seconds, "read_timeout": stall_seconds, "retries": {"max_attempts": 1}}
        options["config_kwargs"] = limits
    return fsspec.filesystem(scheme, **options)


def _is_permanent(error: Exception) -> bool:
    status = getattr(error, "status", None)
    if isinstance(status, int):
        return status in _PERMANENT_STATUS and status not in _BUSY_STATUS
    if isinstance(error, TimeoutError):
        return False
    return isinstance(error, (FileNotFoundError, PermissionError)) or type(error).__name__ == "NoCredentialsError"


def _first_line(error: Exception) -> str:
    """What an error says, in a line; never more, as a library's message may quote a request's headers."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200] or type(error).__name__
