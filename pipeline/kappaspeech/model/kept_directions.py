"""Singular directions of a matrix that training must not change (OSF: orthogonal subspace fine-tuning, arXiv:2504.07097).

M rows · N columns · K kept directions; any dimensions may stand before them
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from kappaspeech.errors import SelectionError


@dataclass(frozen=True)
class KeptDirections:
    """The `left_MK` and `right_NK` singular vectors of largest σ, and these."""

    left_MK: Tensor
    sigma_K: Tensor
    right_NK: Tensor

    def restore(self, weight_MN: Tensor) -> Tensor:
        """The nearest matrix W with UᵀW = ΣVᵀ and WV = UΣ, which is what the first matrix had. Sums in float32.

        So its change is orthogonal to all kept directions on both sides, as OSF's is, in whatever way it was made.
        """
        with _all_digits():
            kept_MK = self.left_MK * self.sigma_K[..., None, :]
            right_KN = self.right_NK.mT
            inner_KN = self.left_MK.mT @ weight_MN - self.sigma_K[..., :, None] * right_KN
            weight_MN = weight_MN - self.left_MK @ inner_KN
            return weight_MN - (weight_MN @ self.right_NK - kept_MK) @ right_KN


@contextmanager
def _all_digits() -> Iterator[None]:
    """Let products of float32 keep their digits. NVIDIA's TF32, which images switch on (TORCH_ALLOW_TF32_CUBLAS_OVERRIDE), keeps
    ten bits of each factor: a matrix that hasn't changed would move by more than a step of training moves it."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def count_kept_directions(shape: Sequence[int], *, share: float) -> int:
    """The number of directions of a matrix of this shape that stay, `share` of all and one at least."""
    return max(1, int(share * min(shape[-2:])))


def find_still(shapes: Mapping[str, Sequence[int]], *, share: float) -> list[str]:
    """The tensors of which every direction stays, so that they don't train: those of a single row or column.

    Raises `SelectionError` for a vector, which has no singular directions.
    """
    vectors = [name for name, shape in shapes.items() if len(shape) < 2]
    if vectors:
        raise SelectionError(
            f"unfreeze.osf keeps directions of matrices; {len(vectors)} selected tensor(s) are vectors (first: {vectors[0]}). "
            "Select again without them (--exclude), or remove unfreeze.osf."
        )
    return [name for name, shape in shapes.items() if count_kept_directions(shape, share=share) == min(shape[-2:])]


def find_directions(weight_MN: Tensor, *, share: float) -> KeptDirections:
    """The top directions of a matrix, as many as `count_kept_directions` says; in float64, as float32."""
    left, sigma, right = torch.linalg.svd(weight_MN.double(), full_matrices=False)
    number = count_kept_directions(weight_MN.shape, share=share)
    # else a slice would keep the whole decomposition in memory
    return KeptDirections(
        left[..., :number].float().contiguous(), sigma[..., :number].float(), right[..., :number, :].mT.float().contiguous()
    )
