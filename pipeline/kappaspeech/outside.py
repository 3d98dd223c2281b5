"""Files that others wrote: opened only if they are regular, read up to a size, parsed so that every fault is a sentence.

The one door for JSON. What comes through it has only finite depth, whole characters and, unless asked for, finite numbers; of
which types it is made, the reader that knows its meaning checks.
"""

from __future__ import annotations

import json
import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from kappaspeech.errors import InputError, KappaSpeechError

# a ranking of 40,000 experts has 30 MB, the longest index 20
MAX_JSON_BYTES = 256 << 20
_MAX_DEPTH = 100
_MAX_MESSAGE = 300
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")


def open_regular(path: Path) -> int:
    """A descriptor to read `path` by. Raises `OSError` if it is no regular file: a pipe would wait for ever, a device never
    end."""
    # without O_NONBLOCK the opening of a pipe waits for a writer
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        check_regular(os.fstat(descriptor))
        os.set_blocking(descriptor, True)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def check_regular(status: os.stat_result) -> None:
    """Raise `OSError` for anything but a regular file."""
    if not stat.S_ISREG(status.st_mode):
        raise OSError(0, f"it is a {_KINDS.get(stat.S_IFMT(status.st_mode), 'special file')} and no file with an end")


def read_regular(path: Path, *, most_bytes: int | None = None) -> bytes:
    """The whole of a regular file. Raises `OSError`, also if it is longer than `most_bytes`."""
    descriptor = open_regular(path)
    with os.fdopen(descriptor, "rb") as file:
        if most_bytes is None:
            return file.read()
        num_bytes = os.fstat(descriptor).st_size
        content = file.read(most_bytes + 1) if num_bytes <= most_bytes else b""
    if max(num_bytes, len(content)) > most_bytes:
        raise OSError(0, f"it has {num_bytes:,} bytes, and at most {most_bytes:,} are read")
    return content


def read_into(view: memoryview, descriptor: int, begin: int) -> int:
    """Fill `view` with a file's bytes from `begin` on; return their number, which is less if the file ends before.

    One call to the system may give fewer than there are: 2 GiB at most, and less over some networks. Raises `OSError`.
    """
    done = 0
    while done < len(view) and (count := os.preadv(descriptor, [view[done:]], begin + done)):
        done += count
    return done


def parse_json(content: bytes, *, is_finite: bool = False, is_unique: bool = False) -> Any:
    """The value of UTF-8 JSON, `content`. Raises `ValueError` if it is none, too deep, or holds half a surrogate pair.

    Infinity and NaN, which other programs write, are refused if `is_finite`, and a key that an object has twice if `is_unique`.
    """
    try:
        value = json.loads(
            content.decode("utf-8-sig"),
            object_pairs_hook=_unique if is_unique else None,
            parse_constant=_refuse_constant if is_finite else None,
        )
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    if _is_deeper(value, _MAX_DEPTH):
        raise ValueError(f"it is nested more than {_MAX_DEPTH} deep")
    if _SURROGATE.search(content):
        # half a pair is no character: nothing could write it again
        json.dumps(value, ensure_ascii=False).encode()
    return value


def read_json_file(path: Path, *, most_bytes: int = MAX_JSON_BYTES, is_finite: bool = False) -> Any:
    """The value of a JSON file. Raises `OSError` and `ValueError`, which `explained` turns into a sentence."""
    return parse_json(read_regular(path, most_bytes=most_bytes), is_finite=is_finite)


@contextmanager
def explained(what: str, remedy: str = "", *, kind: type[KappaSpeechError] = InputError) -> Iterator[None]:
    """Turn whatever a parser raises into `kind`: "`what`: cause. `remedy`". Errors that are sentences already pass."""
    try:
        yield
    except KappaSpeechError:
        raise
    except Exception as error:
        raise kind(f"{what}: {describe(error)}. {remedy}".rstrip()) from error


def describe(error: BaseException) -> str:
    """An exception in a short line without a full stop, for a sentence."""
    if isinstance(error, MemoryError):
        return "there is no memory for what it says it holds"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    find_all = getattr(error, "errors", None)  # pydantic's
    if callable(find_all):
        first = find_all()[0]
        place = ".".join(map(str, first["loc"]))
        message = first["msg"].removeprefix("Value error, ")
        value = "" if isinstance(first["input"], (dict, list)) else f" (it is {first['input']!r:.60})"
        return f"{place}: {message}{value}" if place else str(message)
    first = (str(error).strip().splitlines() or [""])[0]
    first = first if len(first) <= _MAX_MESSAGE else first[:_MAX_MESSAGE] + "…"
    if isinstance(error, KeyError):
        return f"{first} is missing"
    return first.rstrip(".") or type(error).__name__


def _is_deeper(value: Any, depth: int) -> bool:
    level = [value] if isinstance(value, (dict, list)) else []
    while level and depth:
        inner = (child for each in level for child in (each.values() if isinstance(each, dict) else each))
        level, depth = [child for child in inner if isinstance(child, (dict, list))], depth - 1
    return bool(level)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"it has {twice!r} twice")
    return value


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"it holds {name}, which is no number")


_KINDS = {
    stat.S_IFDIR: "folder",
    stat.S_IFIFO: "pipe",
    stat.S_IFCHR: "device",
    stat.S_IFBLK: "device",
    stat.S_IFSOCK: "socket",
}
