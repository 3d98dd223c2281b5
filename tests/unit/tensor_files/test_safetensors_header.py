"""The one table and the one header of safetensors: what is written is what the library reads, and the other way round."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file as save_arrays
from safetensors.torch import load_file, save_file

from kappaspeech.tensor_files.safetensors_file import SafetensorsFile
from kappaspeech.tensor_files.safetensors_header import FORMATS, TornHeaderError, find_data, parse_entry, read_header
from kappaspeech.tensor_files.safetensors_writer import SafetensorsWriter

PACKAGE = Path(__file__).parents[3] / "pipeline/kappaspeech"
DTYPES = {form.name: getattr(torch, form.name) for form in FORMATS.values() if hasattr(torch, form.name)}


def header_of(path: Path):
    descriptor = os.open(path, os.O_RDONLY)
    try:
        return read_header(descriptor)
    finally:
        os.close(descriptor)


def test_the_library_reads_each_dtype_that_is_written_and_it_is_read_as_written_by_the_library(tmp_path):
    tensors = {name: torch.arange(2).to(dtype) for name, dtype in DTYPES.items() if name != "float8_e8m0fnu"}
    writer = SafetensorsWriter(
        tmp_path / "own", dict.fromkeys(tensors, (2,)), dtype={name: tensor.dtype for name, tensor in tensors.items()}
    )
    for name, tensor in tensors.items():
        writer.add(name, tensor)
    writer.close()
    read = load_file(tmp_path / "own")
    assert all(read[name].dtype == tensor.dtype for name, tensor in tensors.items())
    save_file(tensors, tmp_path / "theirs")
    for path in (tmp_path / "own", tmp_path / "theirs"):
        file = SafetensorsFile(path)
        assert {tensor.name: tensor.dtype for tensor in file.tensors} == {name: name for name in tensors}
        for name, tensor in tensors.items():
            assert file.read(name, 0, 2).tobytes() == tensor.view(torch.uint8).numpy().tobytes()


def test_a_table_s_columns_and_metadata_are_found(tmp_path):
    save_arrays({"a": np.arange(3, dtype="<u2"), "b": np.zeros(5, "<i8")}, tmp_path / "x", metadata={"index": "text"})
    header = header_of(tmp_path / "x")
    entry = parse_entry(header.entries["a"])
    begin = header.data_begin + entry.begin
    assert (entry.dtype, entry.shape, header.metadata) == ("U16", (3,), {"index": "text"})
    content = (tmp_path / "x").read_bytes()
    assert np.frombuffer(content[begin : begin + 6], FORMATS["U16"].array).tolist() == [0, 1, 2]


@pytest.mark.parametrize("content", [b"", b"\1", (10).to_bytes(8, "little") + b"{}", (1 << 63).to_bytes(8, "little") + b"{}"])
def test_a_file_that_is_shorter_than_its_header_is_torn(tmp_path, content):
    (tmp_path / "x").write_bytes(content)
    with (tmp_path / "x").open("rb") as file, pytest.raises(TornHeaderError, match=f"it has {len(content)} bytes"):
        find_data(file.fileno())


@pytest.mark.parametrize(
    "entry",
    [
        None,
        {},
        {"dtype": "F32", "shape": [2]},
        {"dtype": "F32", "shape": 2, "data_offsets": [0, 8]},
        {"dtype": "F32", "shape": [True], "data_offsets": [0, 8]},
        {"dtype": ["F32"], "shape": [2], "data_offsets": [0, 8]},
        {"dtype": "F32", "shape": [2], "data_offsets": [8, 0]},
        {"dtype": "F32", "shape": [2], "data_offsets": [0, 8, 9]},
    ],
    ids=json.dumps,
)
def test_an_entry_that_makes_no_sense_is_refused(entry):
    with pytest.raises(ValueError, match="are expected"):
        parse_entry(entry)


def test_no_other_module_knows_the_format():
    """Of its eight bytes of length and its `data_offsets` only the header's own module has to know."""
    users = [path.name for path in PACKAGE.rglob("*.py") if re.search(r"data_offsets|\"__metadata__\"", path.read_text("utf-8"))]
    assert users == ["safetensors_header.py"]
