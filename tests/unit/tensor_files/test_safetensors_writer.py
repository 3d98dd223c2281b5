"""safetensors written tensor by tensor."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file

from kappaspeech.tensor_files.safetensors_writer import SafetensorsWriter


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_streamed_tensor_file_is_a_safetensors_file(tmp_path, dtype):
    tensors = {"b": torch.randn(3, 5), "a": torch.randn(7), "scalar": torch.tensor(2.0)}
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    writer = SafetensorsWriter(tmp_path / "x.safetensors", shapes, dtype=dtype)
    for name, tensor in tensors.items():
        writer.add(name, tensor)
    writer.close()
    read = load_file(tmp_path / "x.safetensors")
    assert all(torch.equal(read[name], tensor.to(dtype)) for name, tensor in tensors.items())
    assert {name: tuple(tensor.shape) for name, tensor in read.items()} == shapes
