"""Offsets of a tar's members, from its headers only; no header is trusted beyond the size of the file."""

from __future__ import annotations

import os
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from kappaspeech.errors import DataError
from kappaspeech.outside import open_regular

HEADER_BYTES = 512
# A name or a PAX header is a few hundred bytes.
_LONGEST_EXTRA_BYTES = 1 << 20
_REGULAR = (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.CONTTYPE)
_WITHOUT_CONTENT = (tarfile.LNKTYPE, tarfile.SYMTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.DIRTYPE, tarfile.FIFOTYPE)


def read_members(file: Any, num_bytes: int) -> Iterator[tuple[str, int, int]]:
    """Name, offset and size of each regular file in a tar of so many bytes; names that are no UTF-8 are escaped.

    Reads ustar, GNU's long names and PAX. Raises `ValueError` for what is no tar or is cut, and for sparse members, whose
    bytes don't lie there as they are.
    """
    place = 0
    found: dict[str, str] = {}
    standing: dict[str, str] = {}
    while True:
        file.seek(place)
        header = file.read(HEADER_BYTES)
        if len(header) < HEADER_BYTES:
            raise ValueError(f"its headers end at byte {place + len(header)}")
        if not any(header):
            return
        try:
            member = tarfile.TarInfo.frombuf(header, "utf-8", "surrogateescape")
        except (tarfile.TarError, ValueError, OverflowError) as error:
            raise ValueError(f"{error} at byte {place}") from error
        extra = member.type in (tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK, tarfile.XHDTYPE, tarfile.XGLTYPE, b"X")
        name = found.get("path") or standing.get("path") or member.name
        size = _size(name, member.size if extra else found.get("size", standing.get("size", member.size)))
        start, place = place + HEADER_BYTES, place + HEADER_BYTES
        if extra or member.type not in _WITHOUT_CONTENT:
            place += -(-size // HEADER_BYTES) * HEADER_BYTES
        if extra:
            content = _read_extra(file, start, size)
            if member.type == tarfile.GNUTYPE_LONGNAME:
                found["path"] = content.rstrip(b"\0").decode("utf-8", "surrogateescape")
            elif member.type == tarfile.XGLTYPE:
                standing.update(_parse_pax(content))
            elif member.type != tarfile.GNUTYPE_LONGLINK:
                found.update(_parse_pax(content))
            continue
        if member.type == tarfile.GNUTYPE_SPARSE or any(key.startswith("GNU.sparse") for key in found):
            raise ValueError(f"{escape_name(name)} is a sparse member; make the tar without --sparse")
        found = {}
        if member.type in _REGULAR and not name.endswith("/"):
            yield escape_name(name), start, size
        if place > num_bytes:
            raise ValueError(f"{escape_name(name)} ends at byte {place}, the file at {num_bytes}")


def list_members(path: Path) -> dict[str, tuple[int, int]]:
    """Offset and size of each regular file in a tar on disk, by its name. Raises `DataError`."""
    try:
        with os.fdopen(open_regular(path), "rb") as file:
            num_bytes = os.fstat(file.fileno()).st_size
            return {name: (offset, size) for name, offset, size in read_members(file, num_bytes)}
    except (OSError, ValueError) as error:
        raise DataError(f"{path} can't be read as a tar: {error}. Fetch it again.") from error


def read_part(path: Path, offset: int, num_bytes: int) -> bytes:
    """Bytes of a regular file. Raises `OSError`, also if it ends before them."""
    descriptor = open_regular(path)
    with os.fdopen(descriptor, "rb") as file:
        file.seek(offset)
        content = file.read(num_bytes)
    if len(content) < num_bytes:
        raise OSError(0, f"it ends at byte {offset + len(content)}, before {offset + num_bytes}")
    return content


def _size(name: str, size: int | str) -> int:
    try:
        number = int(size)
    except ValueError:
        number = -1
    if number < 0:
        raise ValueError(f"{escape_name(name)} has {str(size)[:40]!r} for its size")
    return number


def _read_extra(file: Any, start: int, size: int) -> bytes:
    if size > _LONGEST_EXTRA_BYTES:
        raise ValueError(f"a name or PAX header of {size} bytes begins at byte {start}")
    file.seek(start)
    content: bytes = file.read(size)
    if len(content) < size:
        raise ValueError(f"a header that begins at byte {start} is cut")
    return content


def _parse_pax(content: bytes) -> dict[str, str]:
    """Records "LENGTH KEY=VALUE\\n", of which the length counts itself."""
    records: dict[str, str] = {}
    place = 0
    while place < len(content) and content[place] != 0:
        digits, space, _ = content[place : place + 20].partition(b" ")
        if not space or not digits.isdigit() or not len(digits) + 1 < int(digits) <= len(content) - place:
            raise ValueError("a PAX header can't be understood")
        key, equals, value = content[place + len(digits) + 1 : place + int(digits) - 1].partition(b"=")
        if not equals:
            raise ValueError("a PAX header can't be understood")
        records[key.decode("utf-8", "replace")] = value.decode("utf-8", "surrogateescape")
        place += int(digits)
    return records


def escape_name(name: str) -> str:
    """A name in which bytes that are no UTF-8 are written out, and nothing follows a NUL."""
    return name.partition("\0")[0].encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
