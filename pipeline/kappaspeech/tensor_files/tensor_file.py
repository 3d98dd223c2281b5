"""What every file of tensors answers, whatever its format."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from kappaspeech.tensor_files.dtypes import StoredArray


@dataclass(frozen=True)
class StoredTensor:
    """A tensor as its file lists it. `storage` is equal for two names exactly where they share their bytes."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    num_bytes: int
    storage: int


class TensorFile(Protocol):
    """One file: what it holds, and any range of a tensor, as numbers and as bytes. Raises `CheckpointError` when it is opened."""

    path: Path
    tensors: list[StoredTensor]

    def read(self, name: str, start: int, stop: int) -> StoredArray:
        """Elements `start` to `stop` of the flattened tensor. Raises `OSError`."""

    def read_bytes(self, name: str, offset: int, size: int) -> bytes:
        """`size` raw bytes of a tensor from `offset` on. Raises `OSError`."""
