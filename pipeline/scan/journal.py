"""What has been measured, kept as it is measured, so that a killed scan continues and a second one has less to do.

A folder of JSON lines, one file a process: appending needs no lock, also on a network file system. A line's key says which
bytes were measured and how; a line torn by a kill is not JSON and counts for nothing.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.artefacts import digest_json
from pipeline.errors import InputError
from pipeline.scan.checkpoint import Checkpoint
from pipeline.scan.matrices import MatrixRef

# Raise it when a change of method changes numbers: older lines then no longer count.
_METHOD_VERSION = 2
_log = logging.getLogger(__name__)


class Journal:
    """Measured matrices of a checkpoint in `folder`, by key. Raises `InputError` where the folder can't be written."""

    def __init__(self, folder: Path, checkpoint: Checkpoint, **options: Any) -> None:
        self._folder = folder
        self._checkpoint = checkpoint
        self._options = options
        self._files: dict[Path, list[Any]] = {}
        self._is_full = False
        try:
            folder.mkdir(parents=True, exist_ok=True)
            path = folder / f"{socket.gethostname()}-{os.getpid()}.jsonl"
            self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        except OSError as error:
            raise InputError(
                f"The scan's journal can't be written into {folder}: {error.strerror}. Give another folder (--journal), or none "
                "(--no-journal) to do without continuing."
            ) from error
        self._path = path

    def key(self, ref: MatrixRef) -> str:
        """Which bytes, and how they are measured: file, size, modification time, name, shape, options."""
        file = self._checkpoint.file_of(ref.tensor.name)
        if file not in self._files:
            status = file.stat()
            self._files[file] = [str(file.resolve()), status.st_size, status.st_mtime_ns]
        return digest_json([_METHOD_VERSION, self._files[file], ref.name, ref.shape, self._options])

    def read(self) -> dict[str, Any]:
        """Every whole line of every process, by key."""
        found = {}
        for path in sorted(self._folder.glob("*.jsonl")):
            for line in path.read_bytes().splitlines():
                try:
                    entry = json.loads(line)
                    found[str(entry["key"])] = entry["value"]
                except (ValueError, KeyError, TypeError):
                    continue  # torn by a kill: what it would have said is measured again
        return found

    def append(self, ref: MatrixRef, value: Mapping[str, Any]) -> None:
        """Keep what `ref` measured. One write, so that a kill leaves a whole line or a torn one and nothing else."""
        if self._is_full:
            return
        line = json.dumps({"key": self.key(ref), "value": value}, allow_nan=False).encode()
        try:
            os.write(self._descriptor, b"\n" + line + b"\n")
        except OSError as error:
            self._is_full = True
            _log.warning(
                "%s takes no more (%s): the scan goes on, and what it measures from here on isn't kept.", self._path, error
            )

    def close(self) -> None:
        """Close this process's file, and remove it where nothing was measured."""
        with contextlib.suppress(OSError):
            os.close(self._descriptor)
            if self._path.stat().st_size == 0:
                self._path.unlink()


def default_folder(checkpoint: Checkpoint) -> Path:
    """Where scans of `checkpoint` find each other: the user's cache, by the checkpoint's digest."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "kappaspeech" / "scans" / checkpoint.digest[:16]
