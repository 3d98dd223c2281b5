"""The loss in chunks against the loss at once."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

from kappaspeech.model import loss
from kappaspeech.model.loss import anchor_nats, label_nats

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


def kl_by_hand(logits: torch.Tensor, base: torch.Tensor) -> torch.Tensor:
    """Σ p (log p − log q), written out."""
    p, q = base.exp() / base.exp().sum(dim=1, keepdim=True), logits.exp() / logits.exp().sum(dim=1, keepdim=True)
    return (p * (p / q).log()).sum()


@pytest.mark.parametrize("num_rows", [1, 7, 1_000])
def test_the_anchor_and_its_gradient_are_those_of_autograd_on_the_formula(monkeypatch, num_rows):
    monkeypatch.setattr(loss, "CHUNK_ELEMENTS", num_rows * VOCABULARY)
    generator = torch.Generator().manual_seed(1)
    logits, base = (torch.randn(NUM_LABELS, VOCABULARY, generator=generator, dtype=torch.float64) for _ in range(2))
    found, expected = logits.clone().requires_grad_(), logits.clone().requires_grad_()
    nats, by_hand = anchor_nats(found, base), kl_by_hand(expected, base)
    assert float(nats.detach()) == pytest.approx(float(by_hand.detach()), rel=1e-12)
    (3 * nats).backward()
    (3 * by_hand).backward()
    torch.testing.assert_close(found.grad, expected.grad, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(found.grad, 3 * (logits.softmax(dim=1) - base.softmax(dim=1)), rtol=1e-10, atol=1e-12)


def test_the_anchor_is_nothing_at_the_base_and_is_wide_in_bfloat16():
    logits = torch.randn(5, VOCABULARY, generator=torch.Generator().manual_seed(2)).bfloat16().requires_grad_()
    nats = anchor_nats(logits, logits.detach())
    nats.backward()
    assert nats.dtype == torch.float32
    assert float(nats.detach()) == 0
    assert logits.grad.dtype == torch.bfloat16
    assert not logits.grad.any()
