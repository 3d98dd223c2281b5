"""A GGUF file: llama.cpp's names and block formats, dequantised a few rows at a time."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np

from pipeline.errors import CheckpointError
from pipeline.scan.dtypes import StoredArray
from pipeline.scan.safetensors_file import StoredTensor

_DTYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
_ARRAYS = {"float64": "<f8", "float32": "<f4", "float16": "<f2", "bfloat16": "<u2"}


class GgufFile:
    """Tensors under GGUF's own names. Those of block formats are listed by the format's name and read as float32."""

    def __init__(self, path: Path) -> None:
        import gguf

        self.path = path
        try:
            tensors = gguf.GGUFReader(path).tensors
        except (OSError, ValueError, KeyError, IndexError) as error:
            raise CheckpointError(f"{path} can't be read as GGUF: {error}. Fetch it again.") from error
        self._dequantize, self._sizes = gguf.dequantize, gguf.GGML_QUANT_SIZES
        self._tensors = {str(tensor.name): tensor for tensor in tensors}
        self.tensors = []
        num_bytes = path.stat().st_size
        for name, tensor in self._tensors.items():
            if tensor.data_offset + tensor.n_bytes > num_bytes:
                raise CheckpointError(f"{path} ends at byte {num_bytes}, inside {name}: it is torn. Fetch it again.")
            # GGUF names the fastest dimension first
            shape = tuple(int(size) for size in reversed(tensor.shape))
            kind = tensor.tensor_type.name
            self.tensors.append(
                StoredTensor(name, shape, _DTYPES.get(kind, f"gguf_{kind.lower()}"), int(tensor.n_bytes), int(tensor.data_offset))
            )

    def read(self, name: str, start: int, stop: int) -> StoredArray:
        """Elements `start` to `stop` of the flattened tensor: as stored, or as float32 for a block format."""
        tensor = self._tensors[name]
        raw = tensor.data.reshape(-1).view(np.uint8)
        kind = tensor.tensor_type
        if kind.name in _DTYPES:
            array = _ARRAYS[_DTYPES[kind.name]]
            width = np.dtype(array).itemsize
            values: StoredArray = raw[start * width : stop * width].view(array)
            return values
        block, size = self._sizes[kind]
        first, last = start // block, math.ceil(stop / block)
        decoded: StoredArray = self._dequantize(raw[first * size : last * size], kind)
        return decoded[start - first * block : stop - first * block]

    def read_bytes(self, name: str, offset: int, size: int) -> bytes:
        """`size` raw bytes of a tensor from `offset` on."""
        return bytes(self._tensors[name].data.reshape(-1).view(np.uint8)[offset : offset + size])
