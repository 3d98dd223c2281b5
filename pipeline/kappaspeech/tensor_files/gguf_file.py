"""A GGUF file: llama.cpp's names and block formats, dequantised a few rows at a time."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

import numpy as np

from kappaspeech.errors import CheckpointError
from kappaspeech.needed_packages import need
from kappaspeech.outside import explained, open_regular
from kappaspeech.tensor_files.dtypes import FLOATS, StoredArray
from kappaspeech.tensor_files.gguf_header import GgufEntry, read_header
from kappaspeech.tensor_files.tensor_file import StoredTensor

_DTYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
UNREADABLE = "undecodable_"


class GgufFile:
    """Tensors under GGUF's own names. Those of block formats are listed by the format's name and read as float32.

    `num_pieces` is the number of files of the model, `architecture` GGUF's name of its family. Raises `CheckpointError`.
    """

    def __init__(self, path: Path) -> None:
        need(f"Reading {path}, a GGUF file,", "gguf", kind=CheckpointError)
        import gguf

        self.path = path
        self._gguf: Any = gguf
        self._entries: dict[str, GgufEntry] = {}
        self.tensors: list[StoredTensor] = []
        with explained(f"{path} can't be read as GGUF", "Fetch it again.", kind=CheckpointError):
            self._file = os.fdopen(open_regular(path), "rb")
            self._num_bytes = os.fstat(self._file.fileno()).st_size
            header = read_header(self._file)
            self.tensors = [self._list(entry) for entry in header.entries]
        count = header.fields.get("split.count", 1)
        self.num_pieces = count if type(count) is int else 1
        family = header.fields.get("general.architecture")
        self.architecture = family if isinstance(family, str) else None

    def __del__(self) -> None:
        if hasattr(self, "_file"):
            self._file.close()

    def _list(self, entry: GgufEntry) -> StoredTensor:
        if entry.name in self._entries:
            raise ValueError(f"it has {entry.name} twice")
        kind = self._gguf.GGMLQuantizationType(entry.kind)
        block, size = self._gguf.GGML_QUANT_SIZES[kind]
        if entry.shape and entry.shape[-1] % block:
            raise ValueError(f"{entry.name} has rows of {entry.shape[-1]} in {kind.name}, whose blocks have {block}")
        num_bytes = math.prod(entry.shape) // block * size
        if entry.begin + num_bytes > self._num_bytes:
            raise CheckpointError(f"{self.path} ends at byte {self._num_bytes}, inside {entry.name}: it is torn. Fetch it again.")
        self._entries[entry.name] = entry
        known = kind.name in _DTYPES or self._can_decode(kind, size)
        dtype = _DTYPES.get(kind.name, f"{'' if known else UNREADABLE}gguf_{kind.name.lower()}")
        return StoredTensor(entry.name, entry.shape, dtype, num_bytes, entry.begin)

    def _can_decode(self, kind: Any, block_bytes: int) -> bool:
        """Return whether a format is decoded: formats of activations, and whole numbers, never are."""
        try:
            with np.errstate(all="ignore"):
                self._gguf.dequantize(np.zeros((1, block_bytes), np.uint8), kind)
        except NotImplementedError:
            return False
        return True

    def read(self, name: str, start: int, stop: int) -> StoredArray:
        """Elements `start` to `stop` of the flattened tensor: as stored, or as float32 for a block format. Raises `OSError`."""
        kind = self._gguf.GGMLQuantizationType(self._entries[name].kind)
        if kind.name in _DTYPES:
            array = FLOATS[_DTYPES[kind.name]].array
            width = np.dtype(array).itemsize
            values: StoredArray = np.frombuffer(self.read_bytes(name, start * width, (stop - start) * width), dtype=array)
            return values
        block, size = self._gguf.GGML_QUANT_SIZES[kind]
        first, last = start // block, math.ceil(stop / block)
        raw = np.frombuffer(self.read_bytes(name, first * size, (last - first) * size), dtype=np.uint8)
        with np.errstate(all="ignore"):
            decoded: StoredArray = self._gguf.dequantize(raw, kind)
        return decoded[start - first * block : stop - first * block]

    def read_bytes(self, name: str, offset: int, size: int) -> bytes:
        """`size` raw bytes of a tensor from `offset` on. Raises `OSError` if the file ends before."""
        begin = self._entries[name].begin + offset
        parts, done = [], 0
        while done < size:
            part = os.pread(self._file.fileno(), size - done, begin + done)
            if not part:
                raise OSError(f"{self.path} ended at byte {begin + done}, inside {name}: it was cut while it was being read")
            parts.append(part)
            done += len(part)
        return b"".join(parts)
