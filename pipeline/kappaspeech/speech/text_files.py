"""Lists that others wrote: transcripts, tables, manifests. One line of a file is one line, and bytes are never guessed at."""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from kappaspeech.errors import DataError

# under what names a list or a sample keeps its text and its language
TEXT_KEYS = ("text", "transcript", "transcription", "sentence", "normalized_text", "raw_text")
# of a translation (NeMo's Canary) the text is in the target's language
LANGUAGE_KEYS = ("language", "lang", "locale", "target_lang", "source_lang")
_MAX_BYTES = 4 << 30
_TYPES = {type(None): "null", bool: "true or false", int: "a number", float: "a number", list: "a list", dict: "an object"}
_UTF16_MARKS = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


def read_lines(path: Path) -> list[str]:
    """The lines of a text in UTF-8, or in UTF-16 with its mark; without line ends and a mark at the start.

    A line ends at a line feed alone: U+2028, U+0085 and their like stand in transcripts. Raises `DataError`.
    """
    text = read_text(path)
    # lists of the last century end their lines so
    end = "\n" if "\n" in text else "\r"
    return [line.removesuffix("\r") for line in text.split(end)]


def read_text(path: Path) -> str:
    """The whole of a text, as `read_lines` reads it. Raises `DataError`, also for what is no regular file."""
    try:
        if path.exists() and not path.is_file():
            raise DataError(f"{path} is {'a folder' if path.is_dir() else 'no regular file'}; wanted is a text file.")
        if path.stat().st_size > _MAX_BYTES:
            raise DataError(f"{path} has {path.stat().st_size / 1e9:.1f} GB, too much for a list. Divide it.")
        content = path.read_bytes()
    except (OSError, ValueError) as error:
        raise DataError(f"{path} can't be read: {getattr(error, 'strerror', None) or error}.") from error
    encoding = "utf-16" if content.startswith(_UTF16_MARKS) else "utf-8-sig"
    try:
        return content.decode(encoding)
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        name = "UTF-16" if encoding == "utf-16" else "UTF-8"
        raise DataError(
            f"{path}, line {line}: byte 0x{content[error.start]:02x} is no {name}. If the file is in Latin-1: "
            f"iconv -f LATIN1 -t UTF-8 {path.name} > NEW"
        ) from error


def read_table(path: Path) -> Iterator[tuple[int, dict[str, str]]]:
    """Line number and fields of each row of a tab-separated table; the first line names its columns, a missing field is "".

    These corpora don't quote: a quotation mark is text.
    """
    header, *rows = read_lines(path)
    names = header.split("\t")
    for number, row in enumerate(rows, start=2):
        if row:
            yield number, {**dict.fromkeys(names, ""), **dict(zip(names, row.split("\t"), strict=False))}


def parse_object(text: str | bytes) -> dict[str, Any]:
    """A JSON object. `ValueError` for anything else, however deep or long it is."""
    try:
        value = json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    if not isinstance(value, dict):
        raise ValueError(f"it holds {type(value).__name__}, not an object")
    return value


def find_text(fields: dict[str, Any], names: tuple[str, ...]) -> str:
    """The first of the fields `names` that is a text. Raises `ValueError` if there is none, or one that isn't Unicode."""
    present = [name for name in names if name in fields]
    name = next((name for name in present if isinstance(fields[name], str)), None)
    if name is None:
        kind = _TYPES.get(type(fields[present[0]]), "something else") if present else ""
        raise ValueError(f"{present[0]} is {kind}, not a text" if present else "there is no text")
    check_unicode(fields[name])
    return str(fields[name])


def check_unicode(text: str) -> None:
    """`ValueError` for a text that no encoding can write: JSON may hold one half of a pair of surrogates."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"it holds half a character (U+{ord(text[error.start]):04X} at {error.start})") from error
