"""safetensors written tensor by tensor."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file

from kappaspeech.tensor_files.safetensors_writer import SafetensorsWriter, lay_out


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


def test_a_layout_says_where_a_writer_puts_each_tensor(tmp_path):
    tensors = {"b": torch.randn(3, 5), "a": torch.randn(7).bfloat16()}
    shapes, dtypes = {name: tuple(t.shape) for name, t in tensors.items()}, {name: t.dtype for name, t in tensors.items()}
    layout = lay_out(shapes, dtype=dtypes, metadata={"format": "pt"})
    writer = SafetensorsWriter(tmp_path / "x.safetensors", shapes, dtype=dtypes, metadata={"format": "pt"})
    for name, tensor in tensors.items():
        writer.add(name, tensor)
    writer.close()
    content = bytearray(layout.head.ljust(layout.num_bytes, b"\0"))
    for name, tensor in tensors.items():
        raw = tensor.view(torch.uint8).numpy().tobytes()
        content[layout.begins[name] : layout.begins[name] + len(raw)] = raw
    assert (tmp_path / "x.safetensors").read_bytes() == content
