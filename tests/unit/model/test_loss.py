"""The loss in chunks against the loss at once."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

from kappaspeech.model.loss import label_nats

NUM_LABELS, VOCABULARY = 23, 40


class LargestFloat(TorchDispatchMode):
    """The most elements that an operation's result in float32 has had."""

    def __init__(self) -> None:
        super().__init__()
        self.num_elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor) and result.dtype == torch.float32:
            self.num_elements = max(self.num_elements, result.numel())
        return result


def loss_and_gradient(nats: Any, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor, int]:
    generator = torch.Generator().manual_seed(0)
    logits = (4 * torch.randn(NUM_LABELS, VOCABULARY, generator=generator)).to(dtype).requires_grad_()
    labels = torch.randint(VOCABULARY, (NUM_LABELS,), generator=generator)
    weights = torch.rand(NUM_LABELS, generator=generator)
    with LargestFloat() as largest:
        losses = nats(logits, labels)
        (losses * weights).sum().backward()
    return losses.detach(), logits.grad, largest.num_elements


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("num_rows", [1, 5, 22, 23])
def test_chunks_change_no_bit_of_loss_and_gradient(num_rows, dtype):
    def at_once(logits, labels):
        return functional.cross_entropy(logits.float(), labels, reduction="none")

    losses, gradient, _ = loss_and_gradient(at_once, dtype)
    chunked, same, _ = loss_and_gradient(
        lambda logits, labels: label_nats(logits, labels, chunk_elements=num_rows * VOCABULARY + 1), dtype
    )
    assert torch.equal(chunked, losses)
    assert torch.equal(same, gradient)


def test_no_more_than_a_chunk_of_logits_is_held_in_float32():
    *_, most = loss_and_gradient(lambda logits, labels: label_nats(logits, labels, chunk_elements=5 * VOCABULARY), torch.bfloat16)
    assert most == 5 * VOCABULARY
    *_, most = loss_and_gradient(label_nats, torch.bfloat16)
    assert most == NUM_LABELS * VOCABULARY
