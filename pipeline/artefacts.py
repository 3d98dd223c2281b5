"""Files that outlive a run: written whole or not at all, and known by their digests."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pipeline.errors import InputError
from pipeline.outputs import sync_folder, write_with

__all__ = [
    "digest_file",
    "digest_json",
    "digest_lines",
    "read_json",
    "sync_folder",
    "write_json",
    "write_text",
    "write_with",
]

_HASH_BLOCK_BYTES = 1 << 20


def write_text(path: Path, text: str) -> None:
    """Write `text` as UTF-8, atomically. Half of a surrogate pair becomes its escape, as JSON has it."""
    write_with(path, lambda temporary: _fill(temporary, text.encode("utf-8", "backslashreplace")))


def _fill(path: Path, content: bytes) -> None:
    path.write_bytes(content)


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON, atomically. JSON has no infinity: `ValueError` on one."""
    write_text(path, json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: Path, *, schema_version: int) -> dict[str, Any]:
    """Read a JSON object that carries `schema_version`. Raises `InputError` where it is missing, torn or of another version."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path} doesn't exist.") from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise InputError(f"{path} can't be read as JSON: {error}.") from error
    if not isinstance(value, dict) or value.get("schema_version") != schema_version:
        found = value.get("schema_version") if isinstance(value, dict) else type(value).__name__
        raise InputError(f"{path} has schema_version {found!r}; this release reads {schema_version}. Make the file again.")
    return value


def digest_json(value: Any) -> str:
    """SHA-256 of `value`'s canonical JSON, as 64 hex digits."""
    canonical = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return hashlib.sha256(canonical.encode()).hexdigest()


def digest_lines(lines: Iterable[str]) -> str:
    """SHA-256 of newline-terminated `lines`, as 64 hex digits."""
    total = hashlib.sha256()
    for line in lines:
        total.update(line.encode() + b"\n")
    return total.hexdigest()


def digest_file(path: Path) -> str:
    """SHA-256 of a file's content, as 64 hex digits."""
    total = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_HASH_BLOCK_BYTES):
            total.update(block)
    return total.hexdigest()
