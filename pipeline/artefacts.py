"""Files that outlive a run: written whole or not at all, and known by their digests."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from pipeline.errors import InputError
from pipeline.outside import explained, read_json_file

_HASH_BLOCK_BYTES = 1 << 20


def write_with(path: Path, write: Callable[[Path], None]) -> None:
    """Let `write` fill a temporary sibling, then fsync it and rename it over `path`.

    A kill at any instant leaves the old file or the new one. The caller sees to it that one rank alone calls this.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        write(temporary)
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        # mkstemp makes files private; an artefact is as readable as any other file of the user's.
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)
        temporary.replace(path)
        sync_folder(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def sync_folder(folder: Path) -> None:
    """Make a rename in `folder` survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_text(path: Path, text: str) -> None:
    """Write `text` as UTF-8, atomically."""
    write_with(path, lambda temporary: _fill(temporary, text.encode()))


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
    """Write `value` as indented JSON, atomically. JSON has no infinity: `ValueError` on one."""
    write_text(path, json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: Path, *, schema_version: int) -> dict[str, Any]:
    """Read a JSON object that carries `schema_version`. Raises `InputError` where it is missing, torn or of another version."""
    if not path.exists():
        raise InputError(f"{path} doesn't exist.")
    with explained(f"{path} can't be read as JSON"):
        value = read_json_file(path, is_finite=True)
    if not isinstance(value, dict) or value.get("schema_version") != schema_version:
        found = value.get("schema_version") if isinstance(value, dict) else type(value).__name__
        raise InputError(f"{path} has schema_version {found!r:.60}; this release reads {schema_version}. Make the file again.")
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
