"""A `torch.save` file: pytorch_model.bin, openai-whisper's .pt. It is mapped, so only the bytes that are read are in memory."""

from __future__ import annotations

import math
import os
import zipfile
from pathlib import Path
from typing import Any

from kappaspeech.errors import CheckpointError
from kappaspeech.outside import check_regular, explained
from kappaspeech.tensor_files.dtypes import FLOATS, StoredArray
from kappaspeech.tensor_files.tensor_file import StoredTensor

# If a file holds more than weights, they lie under one of these.
_STATE_KEYS = ("model_state_dict", "state_dict", "model")
# PyTorch stores its archive's members as they are; a packed one may be a thousand times as large
_MAX_PACKED_BYTES = 64 << 20


class TorchFile:
    """Tensors by name. They are read with `weights_only`, so that no code in the file runs. Raises `CheckpointError`.

    Sparse, quantised, nested and virtual tensors are listed by their kind, and never read.
    """

    def __init__(self, path: Path) -> None:
        import torch

        self.path = path
        remedy = (
            "It may be torn (fetch it again), hold code beside weights, or be of PyTorch before 1.6 (load it there and save it "
            "as safetensors)."
        )
        with explained(f"{path} can't be read as a file of weights", remedy, kind=CheckpointError):
            check_regular(os.stat(path))
            _check_archive(path)
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
            outer = content if isinstance(content, dict) else {}
            state = next((outer[key] for key in _STATE_KEYS if isinstance(outer.get(key), dict)), outer)
            tensors = {str(name): value for name, value in state.items() if isinstance(value, torch.Tensor)}
            if not tensors:
                raise CheckpointError(f"{path} holds no tensors by name, but a {type(content).__name__}.")
            odd = {name: kind for name, value in tensors.items() if (kind := _odd_kind(value)) is not None}
            self._state = {name: value.resolve_conj().resolve_neg() for name, value in tensors.items() if name not in odd}
            self.tensors = [
                StoredTensor(name, tuple(value.shape) if odd[name] != "nested" else (), f"{odd[name]} {_dtype(value)}", 0, 0)
                if name in odd
                else self._describe(name, value)
                for name, value in tensors.items()
            ]
            for name in tensors:
                name.encode()  # a name that is no text couldn't be written into a ranking

    def _describe(self, name: str, tensor: Any) -> StoredTensor:
        size = tensor.numel() * tensor.element_size()
        return StoredTensor(name, tuple(tensor.shape), _dtype(tensor), size, tensor.data_ptr())

    def read(self, name: str, start: int, stop: int) -> StoredArray:
        """Elements `start` to `stop` of the flattened tensor, as stored."""
        dtype = _dtype(self._state[name])
        # numpy has no name for a scale that is a power of two
        other = "u1" if dtype == "float8_e8m0fnu" else dtype
        return self._read_raw(name, start, stop).view(FLOATS[dtype].array if dtype in FLOATS else other)

    def _read_raw(self, name: str, start: int, stop: int) -> StoredArray:
        import torch

        tensor = self._state[name]
        flat = tensor.reshape(-1)[start:stop] if tensor.is_contiguous() else _gather(tensor, start, stop)
        raw: StoredArray = flat.contiguous().view(torch.uint8).numpy()
        return raw

    def read_bytes(self, name: str, offset: int, size: int) -> bytes:
        """`size` raw bytes of a tensor from `offset` on, as if it were contiguous."""
        if name not in self._state:
            return b""
        width = self._state[name].element_size()
        first, last = offset // width, math.ceil((offset + size) / width)
        content = self._read_raw(name, first, min(last, self._state[name].numel())).tobytes()
        return content[offset - first * width :][:size]


def _check_archive(path: Path) -> None:
    """Raise `ValueError` if the archive's members are packed to a small part of their size."""
    if not zipfile.is_zipfile(path):
        return  # torch's own error explains it
    with zipfile.ZipFile(path) as archive:
        packed = sum(member.file_size for member in archive.infolist() if member.compress_type != zipfile.ZIP_STORED)
    if packed > _MAX_PACKED_BYTES:
        raise ValueError(f"its archive is compressed and would unpack to {packed:,} bytes, which PyTorch never writes")


def _odd_kind(tensor: Any) -> str | None:
    """The kind of a tensor whose bytes are no matrix row by row; None for a plain one."""
    import torch

    if tensor.is_nested:
        return "nested"
    if tensor.layout != torch.strided:
        return str(tensor.layout).removeprefix("torch.")
    if tensor.is_meta:
        return "meta"
    if tensor.is_quantized:
        return "quantised"
    num_bytes = tensor.numel() * tensor.element_size()
    if num_bytes > max(tensor.untyped_storage().nbytes(), _MAX_PACKED_BYTES):
        return "expanded"
    return None


def _dtype(tensor: Any) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _gather(tensor: Any, start: int, stop: int) -> Any:
    """A range of a strided view's elements, without a copy of the rest: only whole leading rows are touched."""
    row = max(1, tensor[0].numel())
    first, last = start // row, -(-stop // row)
    return tensor[first:last].reshape(-1)[start - first * row : stop - first * row]
