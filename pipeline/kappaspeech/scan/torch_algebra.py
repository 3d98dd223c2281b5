"""`Algebra` on a device that torch knows: all arrays stay there.

Triangular solves of one vector are slow on a GPU, so each triangle is inverted once and its solves are products.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kappaspeech.errors import InputError
from kappaspeech.scan.algebra import Matrix
from kappaspeech.scan.staging import Staging
from kappaspeech.tensor_files.dtypes import FloatArray

# numpy's dtype for the bits, and torch's meaning of them
_STORED = {
    "bfloat16": ("<i2", torch.bfloat16),
    "float16": ("<i2", torch.float16),
    "float32": ("<i4", torch.float32),
    "float64": ("<i8", torch.float64),
}


def open_device(name: str) -> torch.device:
    """A device by torch's name for it, as `cuda` or `cuda:1`. Raises `InputError` if none by it computes in float64."""
    try:
        device = torch.device(name)
        torch.zeros(1, dtype=torch.float64, device=device).item()
    except (RuntimeError, AssertionError, TypeError) as error:
        first = str(error).strip().splitlines()[0]
        raise InputError(f"--device {name} can't be used here: {first}. Without --device the scan runs on the CPU.") from error
    return device


class TorchFactor:
    """`Factor` by products with the triangles' inverses."""

    def __init__(self, triangles: list[Tensor]) -> None:
        self.size = len(triangles[0])
        self._triangles = triangles
        identity = torch.eye(self.size, dtype=torch.float64, device=triangles[0].device)
        self._inverses = [torch.linalg.solve_triangular(triangle, identity, upper=False) for triangle in triangles]

    @cached_property
    def log2_volume(self) -> float:
        diagonals = torch.stack([triangle.diagonal() for triangle in self._triangles])
        return math.fsum(math.fsum(np.log2(diagonal)) for diagonal in _to_numpy(diagonals))

    def solve(self, x: Tensor, *, transposed: bool = False) -> Tensor:
        for inverse in reversed(self._inverses) if transposed else self._inverses:
            x = (inverse.T if transposed else inverse) @ x
        return x

    def square_times(self, x: Tensor) -> Tensor:
        for triangle in self._triangles:
            x = triangle.T @ x
        for triangle in reversed(self._triangles):
            x = triangle @ x
        return x


class TorchAlgebra:
    """`Algebra` on one device. Whatever waits for the device goes through `_to_numpy`."""

    block_numbers = 1 << 26
    # 512 MiB in bfloat16
    kept_numbers = 1 << 28

    def __init__(self, device: torch.device) -> None:
        self.device = device
        # NVIDIA's TF32 keeps ten bits
        self.has_single = device.type == "cpu" or torch.get_float32_matmul_precision() == "highest"
        self._staging = Staging(device)

    def vector(self, values: FloatArray) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(values)).to(self.device)

    def empty(self, rows: int, size: int) -> Tensor:
        return torch.empty(rows, size, dtype=torch.float64, device=self.device)

    def to_numpy(self, array: Tensor) -> FloatArray:
        return _to_numpy(array)

    def fetch(self, matrix: Matrix, start: int, stop: int) -> Tensor:
        stored, dtype = matrix.stored_block(start, stop)
        bits, kind = _STORED[dtype]
        # a view of read-only or strided memory would not do; a transposed array stays so on the way
        is_transposed = stored.flags.f_contiguous and not stored.flags.c_contiguous
        flat = np.ascontiguousarray(stored.T if is_transposed else stored).view(bits)
        block = self._staging.bring(torch.from_numpy(flat)).view(kind)
        return block.T if is_transposed else block

    def block(self, fetched: Tensor, *, exponent: int) -> Tensor:
        block = fetched.double()
        # in two steps, as 2^−exponent itself may be beyond float64
        return block * 2.0 ** (-exponent // 2) * 2.0 ** (-exponent - -exponent // 2) if exponent else block

    def peak(self, block: Tensor) -> float:
        return float(_to_numpy(block.abs().max()))

    def to_single(self, fetched: Tensor) -> Tensor:
        return fetched.float()

    def fetch_single(self, matrix: Matrix, start: int, stop: int) -> Tensor:
        return self.to_single(self.fetch(matrix, start, stop))

    def zeros(self, size: int, *, is_single: bool = False) -> Tensor:
        return torch.zeros(size, size, dtype=torch.float32 if is_single else torch.float64, device=self.device)

    def add_square(self, block: Tensor, gram: Tensor) -> None:
        gram.addmm_(block, block.T)

    def row_squares(self, block: Tensor) -> Tensor:
        return (block * block).sum(1, dtype=torch.float64)

    def set_diagonal(self, gram: Tensor, values: Tensor) -> None:
        gram.diagonal().copy_(values)

    def widen(self, square: Tensor) -> Tensor:
        return square.double()

    def to_host(self, gram: Tensor) -> NDArray[Any]:
        return np.asfortranarray(_to_numpy(gram))

    def from_host(self, gram: NDArray[Any]) -> Tensor:
        # `times` needs the other triangle too
        lower = torch.from_numpy(np.ascontiguousarray(gram)).to(self.device).tril()
        return lower + lower.tril(-1).T

    def times(self, gram: Tensor, vector: Tensor) -> Tensor:
        return gram @ vector

    def diagonal(self, square: Tensor) -> FloatArray:
        return _to_numpy(square.diagonal().clone())

    def cholesky(self, gram: Tensor) -> Tensor | None:
        triangle, failed_at = torch.linalg.cholesky_ex(gram)
        return None if _to_numpy(failed_at) else triangle

    def factor(self, triangles: list[Tensor]) -> TorchFactor:
        return TorchFactor(triangles)

    def solve_block(self, triangle: Tensor, block: Tensor) -> Tensor:
        solved: Tensor = torch.linalg.solve_triangular(triangle, block, upper=False)
        return solved

    def triangularise(self, blocks: Iterable[Tensor], size: int) -> Tensor:
        upper = self.zeros(size)
        for block in blocks:
            upper = torch.linalg.qr(torch.cat([upper, block.T]), mode="r")[1]
        return upper

    def svdvals(self, triangle: Tensor) -> FloatArray:
        return _to_numpy(torch.linalg.svdvals(triangle))

    def svdvals_by_square(self, triangle: Tensor) -> FloatArray:
        return _to_numpy(torch.linalg.eigvalsh(triangle.T @ triangle).clamp(min=0).sqrt().flip(0))

    def multiply(self, left: Tensor, right: Tensor) -> Tensor:
        return left @ right


def _to_numpy(tensor: Tensor) -> FloatArray:
    """The same on the host: this waits for the device."""
    values: FloatArray = tensor.cpu().numpy()
    return values
