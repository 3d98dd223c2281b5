"""The interface of every file of tensors, whatever its format."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from kappaspeech.tensor_files.dtypes import StoredArray


@dataclass(frozen=True)
class StoredTensor:
    """A tensor as its file lists it. `storage` is equal for two names if and only if they share their bytes."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    num_bytes: int
    storage: int


class TensorFile(Protocol):
    """One file: its list of tensors, and any range of a tensor, as numbers and as bytes. Opening raises `CheckpointError`."""

    path: Path
    tensors: list[StoredTensor]

    def read(self, name: str, start: int, stop: int) -> StoredArray:
        """Elements `start` to `stop` of the flattened tensor. Raises `OSError`."""

    def read_bytes(self, name: str, offset: int, size: int) -> bytes:
        """`size` raw bytes of a tensor from `offset` on. Raises `OSError`."""
