"""One rank's share of a checkpoint: whole tensors, written at their places in files that all ranks write into."""

from __future__ import annotations

import os
import threading
import zlib
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from kappaspeech.runs.checksums import Span, count_threads

if TYPE_CHECKING:
    from torch import Tensor

_BLOCK_BYTES = 64 << 20


@dataclass(frozen=True)
class Piece:
    """Bytes on the host, a tensor of uint8 in one dimension, and their place in a file."""

    file: str
    begin: int
    content: Tensor


def cut(content: Tensor, *, block_bytes: int = _BLOCK_BYTES) -> list[Tensor]:
    """The bytes of a tensor on the host in blocks, which threads can share out; nothing is copied."""
    import torch

    return list(torch.split(content.detach().contiguous().flatten().view(torch.uint8), block_bytes))


def place(file: str, begin: int, blocks: Iterable[Tensor]) -> list[Piece]:
    """Pieces of blocks that follow each other in a file from `begin` on."""
    pieces = []
    for block in blocks:
        pieces.append(Piece(file, begin, block))
        begin += block.nbytes
    return pieces


class ShareWriter:
    """Writes pieces into the files of `folder`, which are there in their full size, in threads, and sums up what it writes.

    After an error nothing more is written, and `finish` raises it.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._descriptors: dict[str, int] = {}
        self._spans: dict[str, list[Span]] = {}
        self._failures: list[Exception] = []
        self.num_written = 0

    def write(self, pieces: deque[Piece]) -> None:
        """Take the pieces out, and return once they are written; their memory is free as they are."""
        self._open({piece.file for piece in pieces})
        # they end with the process, which may have to end in the middle
        count = min(count_threads(), len(pieces))
        threads = [threading.Thread(target=self._work, args=(pieces,), daemon=True) for _ in range(count)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def _open(self, files: set[str]) -> None:
        for name in files - self._descriptors.keys():
            self._spans.setdefault(name, [])
            try:
                # Write-only: of a page that two hosts write into, a network file system's client then sends what was written
                # here, and not the page as it once read it.
                self._descriptors[name] = os.open(self._folder / name, os.O_WRONLY)
            except OSError as error:
                self._failures.append(error)

    def _work(self, pieces: deque[Piece]) -> None:
        while not self._failures:
            try:
                piece = pieces.popleft()
            except IndexError:
                return
            try:
                self._spans[piece.file].append(self.write_piece(piece))
            except Exception as error:  # noqa: BLE001 - raised by `finish`, whatever it is
                self._failures.append(error)
            self.num_written += 1

    def write_piece(self, piece: Piece) -> Span:
        """Write one piece, and sum it up."""
        view = piece.content.numpy().data
        written = 0
        while written < len(view):
            written += os.pwrite(self._descriptors[piece.file], view[written:], piece.begin + written)
        return Span(piece.begin, piece.begin + len(view), zlib.crc32(view))

    def finish(self) -> dict[str, list[Span]]:
        """Make durable what was written; return its checksums by file. Raises what went wrong, an `OSError` as a rule."""
        try:
            if self._failures:
                raise self._failures[0]
            for descriptor in self._descriptors.values():
                os.fsync(descriptor)
        finally:
            for descriptor in self._descriptors.values():
                os.close(descriptor)
            self._descriptors.clear()
        return self._spans
