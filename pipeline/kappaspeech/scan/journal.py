"""A journal of measured matrices, written as they are measured: a killed scan continues, and a second one has less to do.

A folder of JSON lines, one file a process: appending needs no lock, also on a network file system. A line's key identifies the
matrix and the method, and the line holds a digest of the measured bytes: it counts if the file still has them, whatever its date
and size. Reading them for that takes a hundredth of the time that measuring takes. A line torn by a kill is ignored.
"""

from __future__ import annotations

import base64
import contextlib
import errno
import json
import os
import socket
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from kappaspeech.artefacts import digest_json
from kappaspeech.errors import InputError
from kappaspeech.escaping import make_logger
from kappaspeech.outside import describe, open_regular, parse_json
from kappaspeech.ranks.cluster import Cluster
from kappaspeech.scan.checkpoint import Checkpoint
from kappaspeech.scan.matrices import MatrixRef
from kappaspeech.scan.ranking import RankedMatrix

# Raise it when a change of method changes numbers: older lines then no longer count.
_METHOD_VERSION = 5
_log = make_logger(__name__)
# values of measured matrices, by key, by the digest of the bytes that were measured
Found = dict[str, dict[str, Any]]


class Journal:
    """The journal in `folder` of a checkpoint's measured matrices, by key. Raises `InputError` if the folder can't be written."""

    def __init__(self, folder: Path, checkpoint: Checkpoint, **options: Any) -> None:
        self._folder = folder
        self._checkpoint = checkpoint
        self._options = options
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
        """The matrix and the method of a measurement: name, shape, dtype, scales, options. A line has the digest of the bytes."""
        described = [ref.name, ref.tensor.shape, ref.shape, ref.tensor.dtype, ref.tensor.aliases, ref.scale and asdict(ref.scale)]
        return digest_json([_METHOD_VERSION, described, self._options])

    def read(self) -> Found:
        """Every whole line of every process, by key and digest of the bytes."""
        found: Found = {}
        for path in sorted(self._folder.glob("*.jsonl")):
            for line in _read_lines(path):
                try:
                    entry = parse_json(line, is_finite=True)
                    _check(entry["value"])
                    found.setdefault(str(entry["key"]), {})[str(entry["bytes"])] = entry["value"]
                except (ValueError, KeyError, TypeError, AttributeError):
                    continue  # torn by a kill, or a value that no matrix has: it is measured again
        return found

    def append(self, ref: MatrixRef, digest: str, value: Mapping[str, Any]) -> None:
        """Keep the measurement of `ref`, whose bytes have `digest`. It is one write, so a kill leaves a whole line or a torn
        one."""
        if self._is_full:
            return
        line = json.dumps({"key": self.key(ref), "bytes": digest, "value": value}, allow_nan=False).encode()
        try:
            os.write(self._descriptor, b"\n" + line + b"\n")
        except OSError as error:
            self._is_full = True
            _log.warning(
                "%s can't be written any more (%s): the scan continues, but later results aren't kept.", self._path, error
            )

    def close(self) -> None:
        """Close this process's file, and remove it if nothing was measured."""
        with contextlib.suppress(OSError):
            os.close(self._descriptor)
            if self._path.stat().st_size == 0:
                self._path.unlink()


def _check(value: Mapping[str, Any]) -> None:
    """Raise `ValueError` if no scan could have measured `value`."""
    if value.keys() == {"invalid"}:
        return
    matrix = RankedMatrix.from_json({name: item for name, item in value.items() if name != "sigmas"})
    if "sigmas" in value and len(base64.b64decode(value["sigmas"], validate=True)) != 4 * min(matrix.stats.shape):
        raise ValueError("it hasn't as many singular values as the matrix")


def _read_lines(path: Path) -> Iterator[bytes]:
    try:
        with os.fdopen(open_regular(path), "rb") as file:
            yield from file
    except OSError:
        return  # its matrices are measured again


def find_cache() -> Path:
    """The folder of journals in the user's cache. Raises `OSError` if the user has no home, or none that can be written."""
    try:
        cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    except RuntimeError as error:
        # a container that runs under a number without a name
        raise OSError(f"{error}") from error
    folder = Path(cache) / "kappaspeech" / "scans"
    folder.mkdir(parents=True, exist_ok=True)
    if not os.access(folder, os.W_OK | os.X_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(folder))
    return folder


def default_folder(checkpoint: Checkpoint) -> Path:
    """The folder in which scans of `checkpoint` find each other: the user's cache, by the checkpoint's digest."""
    return find_cache() / checkpoint.digest[:16]


def find_fault(cluster: Cluster) -> str | None:
    """The fault of the first rank that can't write into its user's cache; None if every rank can. A collective."""
    fault = None
    try:
        find_cache()
    except OSError as error:
        fault = f"{error.filename}: {describe(error)}" if error.filename else describe(error)
    return next((found for found in cluster.gather(fault) if found is not None), None)
