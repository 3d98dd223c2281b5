"""Logs of one JSON object a line, as kills, disks and other hands leave them.

Lines end at \\n alone: a text may hold U+2028 or U+0085, at which Python's `splitlines` would cut it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kappaspeech.errors import InputError
from kappaspeech.escaping import make_logger
from kappaspeech.outputs import write_with

Record = dict[str, Any]
_LAST_BLOCK_BYTES = 1 << 16
_log = make_logger(__name__)


@dataclass(frozen=True)
class BadLine:
    """A line that is no record. `is_torn`: the last one, whose end a kill has cut off."""

    number: int
    content: bytes
    cause: str
    is_torn: bool


def dump_line(record: Any) -> str:
    """A record's line. JSON has no infinity: `ValueError` on one."""
    return json.dumps(record, ensure_ascii=False, allow_nan=False) + "\n"


def parse_lines(content: bytes, *, is_record: Callable[[Record], bool] = lambda _: True) -> tuple[list[Record], list[BadLine]]:
    """The records of a log, and the lines that hold none; blank ones are neither."""
    records, bad = [], []
    *lines, rest = content.split(b"\n")
    for number, line in enumerate([*lines, rest], start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line.decode())
        except (ValueError, RecursionError) as error:
            cause = f"{type(error).__name__}: {error}" if isinstance(error, RecursionError) else str(error)
            bad.append(BadLine(number, line, cause, is_torn=number > len(lines)))
            continue
        if isinstance(record, dict) and is_record(record):
            records.append(record)
        else:
            bad.append(BadLine(number, line, "it isn't a record of this log", is_torn=False))
    return records, bad


def read_lines(path: Path, *, is_record: Callable[[Record], bool] = lambda _: True, strictly: bool = False) -> list[Record]:
    """The records of a log; none if it doesn't exist. Lines that hold none are left out; `strictly` they raise `InputError`."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return []
    records, bad = parse_lines(content, is_record=is_record)
    if bad and strictly:
        first = bad[0]
        raise InputError(
            f"{path}, line {first.number} can't be read: {first.cause}. Bring the file back from a copy, or start the training "
            "again: it sets such lines aside and continues."
        )
    return records


def read_last_line(path: Path, *, is_record: Callable[[Record], bool] = lambda _: True) -> Record | None:
    """The last record of a log, read from its end, however long the log is; None if it has none."""
    try:
        with path.open("rb") as file:
            num_bytes, block = file.seek(0, 2), _LAST_BLOCK_BYTES
            while True:
                begin = file.seek(max(0, num_bytes - block))
                content = file.read()
                # the first line of a part is the end of one
                records, _ = parse_lines(content.partition(b"\n")[2] if begin else content, is_record=is_record)
                if records or not begin:
                    return records[-1] if records else None
                block *= 8
    except FileNotFoundError:
        return None


def keep_lines(path: Path, wanted: Callable[[Record], bool], *, is_record: Callable[[Record], bool]) -> None:
    """Leave the wanted records in a log. Lines that can't be read go into X.damaged beside it, with a warning."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return
    records, bad = parse_lines(content, is_record=is_record)
    damaged = [line for line in bad if not line.is_torn]
    if damaged:
        aside = path.with_name(f"{path.name}.damaged")
        with aside.open("ab") as file:
            file.writelines(line.content + b"\n" for line in damaged)
        _log.warning(
            "%s has %d line(s) that can't be read (line %d: %s): set aside in %s.",
            path,
            len(damaged),
            damaged[0].number,
            damaged[0].cause,
            aside.name,
        )
    kept = [record for record in records if wanted(record)]
    if bad or len(kept) != len(records) or not content.endswith(b"\n"):
        write_lines(path, kept)


def write_lines(path: Path, records: Iterable[Any]) -> None:
    """Write a log anew, atomically."""

    def fill(temporary: Path) -> None:
        # half of a surrogate pair is no text; its escape is what JSON has for it
        with temporary.open("w", encoding="utf-8", errors="backslashreplace", newline="\n") as file:
            file.writelines(map(dump_line, records))

    write_with(path, fill)
