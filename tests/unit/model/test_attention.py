from __future__ import annotations

import pytest
import torch
from torch import nn

from pipeline.model.attention import matmul_attention, register_matmul_attention
from pipeline.model.llm import load_llm


@pytest.mark.parametrize("masked", [False, True])
def test_matrix_products_give_the_attention_and_gradients_of_pytorch(masked):
    torch.manual_seed(0)
    heads = [torch.randn(2, count, 5, 8, dtype=torch.float64, requires_grad=True) for count in (6, 3, 3)]
    mask = torch.full((5, 5), -1e9, dtype=torch.float64).triu(1).expand(2, 1, 5, 5) if masked else None
    ours, _ = matmul_attention(nn.Identity(), *heads, mask, scaling=0.3)
    theirs = nn.functional.scaled_dot_product_attention(*heads, mask, scale=0.3, enable_gqa=True)
    torch.testing.assert_close(ours.transpose(1, 2), theirs)
    wanted = torch.randn_like(theirs)
    gradients = [torch.autograd.grad(result, heads, wanted) for result in (ours.transpose(1, 2), theirs)]
    torch.testing.assert_close(gradients[0], gradients[1])


def test_a_model_computes_the_same_by_matrix_products_also_with_padding_at_the_left(home):
    ids = torch.tensor([[3, 4, 5, 6, 7], [8, 9, 10, 11, 12]])
    seen = torch.tensor([[1, 1, 1, 1, 1], [0, 0, 1, 1, 1]])
    results = []
    for attention in ("sdpa", register_matmul_attention()):
        llm = load_llm(str(home / "llm"), dtype=torch.float32, attention=attention)
        with torch.no_grad():
            logits = llm(input_ids=ids, attention_mask=seen, use_cache=False).logits
            written = llm.generate(ids, attention_mask=seen, max_new_tokens=4, do_sample=False)
        results.append((logits[seen.bool()], written))
    torch.testing.assert_close(results[0][0], results[1][0])
    assert torch.equal(results[0][1], results[1][1])
