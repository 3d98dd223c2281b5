"""A `torch.save` file: pytorch_model.bin, openai-whisper's .pt. Mapped, so that only what is read is in memory."""

from __future__ import annotations

import math
import pickle
from pathlib import Path
from typing import Any

from pipeline.errors import CheckpointError
from pipeline.scan.dtypes import FLOATS, StoredArray
from pipeline.scan.safetensors_file import StoredTensor

# Where a file holds more than weights, they lie under one of these.
_STATE_KEYS = ("model_state_dict", "state_dict", "model")


class TorchFile:
    """Tensors by name. Read with `weights_only`, so that no code in the file runs. Raises `CheckpointError`."""

    def __init__(self, path: Path) -> None:
        import torch

        self.path = path
        try:
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except (OSError, RuntimeError, EOFError, pickle.UnpicklingError, ValueError) as error:
            first = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise CheckpointError(
                f"{path} can't be read as a file of weights: {first} It may be torn (fetch it again), hold code beside "
                "weights, or be of PyTorch before 1.6 (load it there and save it as safetensors)."
            ) from error
        outer = content if isinstance(content, dict) else {}
        state = next((outer[key] for key in _STATE_KEYS if isinstance(outer.get(key), dict)), outer)
        self._state: dict[str, Any] = {str(name): value for name, value in state.items() if isinstance(value, torch.Tensor)}
        if not self._state:
            raise CheckpointError(f"{path} holds no tensors by name, but a {type(content).__name__}.")
        self.tensors = [self._describe(name, tensor) for name, tensor in self._state.items()]

    def _describe(self, name: str, tensor: Any) -> StoredTensor:
        size = tensor.numel() * tensor.element_size()
        return StoredTensor(name, tuple(tensor.shape), str(tensor.dtype).removeprefix("torch."), size, tensor.data_ptr())

    def read(self, name: str, start: int, stop: int) -> StoredArray:
        """Elements `start` to `stop` of the flattened tensor, as stored."""
        import torch

        tensor = self._state[name]
        flat = tensor.reshape(-1)[start:stop] if tensor.is_contiguous() else _gather(tensor, start, stop)
        dtype = str(tensor.dtype).removeprefix("torch.")
        raw: StoredArray = flat.contiguous().view(torch.uint8).numpy()
        return raw.view(FLOATS[dtype].array if dtype in FLOATS else dtype)

    def read_bytes(self, name: str, offset: int, size: int) -> bytes:
        """`size` raw bytes of a tensor from `offset` on, as if it were contiguous."""
        width = self._state[name].element_size()
        first, last = offset // width, math.ceil((offset + size) / width)
        content = self.read(name, first, min(last, self._state[name].numel())).tobytes()
        return content[offset - first * width :][:size]


def _gather(tensor: Any, start: int, stop: int) -> Any:
    """A range of a strided view's elements, without a copy of the rest: only whole leading rows are touched."""
    row = max(1, tensor[0].numel())
    first, last = start // row, -(-stop // row)
    return tensor[first:last].reshape(-1)[start - first * row : stop - first * row]
