"""`Algebra` on a device that torch knows: large arrays stay there, in float64; vectors come and go.

Triangular solves of one vector are slow on a GPU, so each triangle is inverted once and its solves are products.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor

from kappaspeech.errors import InputError
from kappaspeech.scan.algebra import Matrix
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
    """`Factor` by products with the triangles and their inverses."""

    def __init__(self, triangles: list[Tensor]) -> None:
        self.size = len(triangles[0])
        self.log2_volume = math.fsum(math.fsum(torch.log2(triangle.diagonal()).tolist()) for triangle in triangles)
        self._triangles = triangles
        identity = torch.eye(self.size, dtype=torch.float64, device=triangles[0].device)
        self._inverses = [torch.linalg.solve_triangular(triangle, identity, upper=False) for triangle in triangles]

    def square(self, x: FloatArray) -> FloatArray:
        vector = self._take(x)
        for triangle in self._triangles:
            vector = triangle.T @ vector
        for triangle in reversed(self._triangles):
            vector = triangle @ vector
        return _to_numpy(vector)

    def solve(self, x: FloatArray, *, transposed: bool = False) -> FloatArray:
        vector = self._take(x)
        for inverse in reversed(self._inverses) if transposed else self._inverses:
            vector = (inverse.T if transposed else inverse) @ vector
        return _to_numpy(vector)

    def _take(self, x: FloatArray) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(x)).to(self._triangles[0].device)


class TorchAlgebra:
    """`Algebra` on one device."""

    block_numbers = 1 << 26

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def block(self, matrix: Matrix, start: int, stop: int, *, exponent: int) -> Tensor:
        stored, dtype = matrix.stored_block(start, stop)
        bits, kind = _STORED[dtype]
        # a view of read-only or strided memory would not do; a transposed array stays so on the way
        is_transposed = stored.flags.f_contiguous and not stored.flags.c_contiguous
        flat = np.ascontiguousarray(stored.T if is_transposed else stored).view(bits)
        block = torch.from_numpy(flat).view(kind).to(self.device).double()
        block = block.T if is_transposed else block
        return torch.ldexp(block, torch.tensor(-exponent, device=self.device)) if exponent else block

    def peak(self, block: Tensor) -> float:
        return float(block.abs().max())

    def zeros(self, size: int) -> Tensor:
        return torch.zeros(size, size, dtype=torch.float64, device=self.device)

    def add_square(self, block: Tensor, gram: Tensor) -> None:
        gram.addmm_(block, block.T)

    def to_host(self, gram: Tensor) -> FloatArray:
        return np.asfortranarray(_to_numpy(gram))

    def from_host(self, gram: FloatArray) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(gram)).to(self.device)

    def diagonal(self, square: Tensor) -> FloatArray:
        return _to_numpy(square.diagonal().clone())

    def cholesky(self, gram: Tensor) -> Tensor | None:
        triangle, failed_at = torch.linalg.cholesky_ex(gram)
        return None if int(failed_at) else triangle

    def factor(self, triangles: list[Tensor]) -> TorchFactor:
        return TorchFactor(triangles)

    def solve_block(self, triangle: Tensor, block: Tensor) -> Tensor:
        solved: Tensor = torch.linalg.solve_triangular(triangle, block, upper=False)
        return solved

    def weigh(self, block: Tensor, vector: FloatArray) -> FloatArray:
        return _to_numpy(block.T @ torch.from_numpy(np.ascontiguousarray(vector)).to(self.device))

    def weigh_twice(self, block: Tensor, vector: FloatArray) -> FloatArray:
        return _to_numpy(block @ (block.T @ torch.from_numpy(np.ascontiguousarray(vector)).to(self.device)))

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
    values: FloatArray = tensor.cpu().numpy()
    return values
