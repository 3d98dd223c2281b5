"""A format of files that joins the table of openers is read as a checkpoint."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from kappaspeech.scan.checkpoint import open_checkpoint
from kappaspeech.tensor_files.dtypes import StoredArray
from kappaspeech.tensor_files.tensor_file import StoredTensor
from kappaspeech.tensor_files.weight_files import OPENERS


class NumpyFile:
    """numpy's own archive of arrays."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with np.load(path) as archive:
            self._arrays = {name: archive[name] for name in archive.files}
        self.tensors = [
            StoredTensor(name, array.shape, str(array.dtype), array.nbytes, storage)
            for storage, (name, array) in enumerate(self._arrays.items())
        ]

    def read(self, name: str, start: int, stop: int) -> StoredArray:
        return self._arrays[name].reshape(-1)[start:stop]

    def read_bytes(self, name: str, offset: int, size: int) -> bytes:
        return self._arrays[name].tobytes()[offset : offset + size]


def test_a_format_is_a_class_and_an_entry(tmp_path, monkeypatch):
    monkeypatch.setitem(OPENERS, ".npz", NumpyFile)
    weight = np.arange(6.0, dtype=np.float32).reshape(2, 3)
    np.savez(tmp_path / "model.npz", **{"w.weight": weight})
    checkpoint = open_checkpoint(tmp_path / "model.npz")
    assert [(ref.name, ref.shape, ref.dtype) for ref in checkpoint.tensors] == [("w.weight", (2, 3), "float32")]
    np.testing.assert_array_equal(checkpoint.read("w.weight", 2, 5), [2.0, 3.0, 4.0])
    assert len(checkpoint.digest) == 64
