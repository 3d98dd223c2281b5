"""The loss of labels from their logits, a chunk of rows at a time where a vocabulary's logits are many.

R label positions of the batch, flattened · V vocabulary · C rows of a chunk
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

# Of logits whose float32 copy, softmax and gradient are there at once.
CHUNK_ELEMENTS = 1 << 26


def label_nats(logits_RV: Tensor, labels_R: Tensor, *, chunk_elements: int = CHUNK_ELEMENTS) -> Tensor:
    """−log p of each label (R,), in nats, float32.

    Beside the logits and their gradient, both in their own dtype, at most `chunk_elements` of them are ever held in float32: of
    6,600 labels among 128,000 words, copy and softmax would be 7 GB. Loss and gradient are those of all rows at once, bit by
    bit: rows don't meet.
    """
    num_rows = max(1, chunk_elements // logits_RV.shape[1])
    if len(labels_R) <= num_rows:
        return _nats(logits_RV, labels_R)
    nats_R: Tensor = _ChunkedNats.apply(logits_RV, labels_R, num_rows)  # type: ignore[no-untyped-call]
    return nats_R


def _nats(logits_CV: Tensor, labels_C: Tensor) -> Tensor:
    return functional.cross_entropy(logits_CV.float(), labels_C, reduction="none")


class _ChunkedNats(torch.autograd.Function):
    """`_nats` of a chunk after the other, each computed again for its gradient."""

    @staticmethod
    def forward(context: Any, logits_RV: Tensor, labels_R: Tensor, num_rows: int) -> Tensor:
        context.save_for_backward(logits_RV, labels_R)
        context.num_rows = num_rows
        chunks = zip(torch.split(logits_RV, num_rows), torch.split(labels_R, num_rows), strict=True)
        return torch.cat([_nats(logits_CV, labels_C) for logits_CV, labels_C in chunks])

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        logits_RV, labels_R = context.saved_tensors
        gradient_RV = torch.empty_like(logits_RV)
        parts = (torch.split(part, context.num_rows) for part in (logits_RV, labels_R, gradients[0], gradient_RV))
        for logits_CV, labels_C, gradient_C, gradient_CV in zip(*parts, strict=True):
            with torch.enable_grad():
                again_CV = logits_CV.detach().requires_grad_()
                nats_C = _nats(again_CV, labels_C)
            gradient_CV.copy_(torch.autograd.grad(nats_C, again_CV, gradient_C)[0])
        return gradient_RV, None, None
