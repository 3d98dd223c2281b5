"""Files that outlive a run: written whole or not at all, and known by their digests."""

from __future__ import annotations

import hashlib
import json
import os
import re
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from kappaspeech.errors import InputError
from kappaspeech.outputs import sync_folder, write_with
from kappaspeech.outside import explained, read_json_file

__all__ = [
    "digest_file",
    "digest_json",
    "digest_lines",
    "read_json",
    "sync_folder",
    "write_json",
    "write_private",
    "write_text",
    "write_with",
]

_HASH_BLOCK_BYTES = 1 << 20
_SURROGATE = re.compile("[\ud800-\udfff]")


def write_text(path: Path, text: str) -> None:
    """Write `text` as UTF-8, atomically. Half of a surrogate pair becomes its escape, as JSON has it."""
    write_with(path, lambda temporary: _fill(temporary, text.encode("utf-8", "backslashreplace")))


def write_private(path: Path, text: str) -> None:
    """Write `text` as UTF-8, atomically, for its owner's eyes alone."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # mkstemp makes files private
    handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        Path(temporary).unlink(missing_ok=True)


def _fill(path: Path, content: bytes) -> None:
    path.write_bytes(content)


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON, atomically. JSON has no infinity: `ValueError` on one.

    Half of a surrogate pair, as a path of bytes that are no text has it, becomes the text of its escape: `read_json` refuses it.
    """
    text = json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    write_text(path, _SURROGATE.sub(lambda half: rf"\\u{ord(half[0]):04x}", text))


def read_json(path: Path, *, schema_version: int) -> dict[str, Any]:
    """Read a JSON object that carries `schema_version`. Raises `InputError` if it is missing, torn or of another version."""
    if not path.exists():
        raise InputError(f"{path} doesn't exist.")
    with explained(f"{path} can't be read as JSON"):
        value = read_json_file(path, is_finite=True)
    if not isinstance(value, dict) or value.get("schema_version") != schema_version:
        found = value.get("schema_version") if isinstance(value, dict) else type(value).__name__
        raise InputError(f"{path} has schema_version {found!r:.60}; this release reads {schema_version}. Make the file again.")
    return value


def digest_json(value: Any) -> str:
    """SHA-256 of `value`'s canonical JSON, as 64 hex digits. Half of a surrogate pair, which JSON may hold, counts too."""
    canonical = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return hashlib.sha256(canonical.encode(errors="surrogatepass")).hexdigest()


def digest_lines(lines: Iterable[str]) -> str:
    """SHA-256 of newline-terminated `lines`, as 64 hex digits."""
    total = hashlib.sha256()
    for line in lines:
        total.update(line.encode(errors="surrogatepass") + b"\n")
    return total.hexdigest()


def digest_file(path: Path) -> str:
    """SHA-256 of a file's content, as 64 hex digits."""
    total = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_HASH_BLOCK_BYTES):
            total.update(block)
    return total.hexdigest()
