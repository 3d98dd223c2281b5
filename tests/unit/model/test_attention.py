from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers import AutoConfig

from kappaspeech.errors import CheckpointError, ConfigError
from kappaspeech.model.attention import MATMUL_ATTENTION, matmul_attention, register_matmul_attention
from kappaspeech.model.family import attentions_of, find_class
from kappaspeech.model.llm import choose_attention, load_llm


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


def test_values_may_be_narrower_than_keys():
    torch.manual_seed(0)
    query, key, value = (torch.randn(2, heads, 5, width) for heads, width in ((4, 8), (2, 8), (2, 6)))
    mask = torch.full((5, 5), -1e9).triu(1).expand(2, 1, 5, 5)
    ours, _ = matmul_attention(nn.Identity(), query, key, value, mask)
    theirs = nn.functional.scaled_dot_product_attention(query, key, value, mask, enable_gqa=True)
    torch.testing.assert_close(ours.transpose(1, 2), theirs)


def test_a_bias_of_positions_is_added_to_the_scores():
    heads = [torch.randn(2, count, 5, 8) for count in (6, 3, 3)]
    bias = torch.randn(1, 6, 5, 5)
    for mask in (None, torch.full((5, 5), -1e9).triu(1).expand(2, 1, 5, 5)):
        ours, _ = matmul_attention(nn.Identity(), *heads, mask, position_bias=bias)
        theirs = nn.functional.scaled_dot_product_attention(*heads, bias if mask is None else mask + bias, enable_gqa=True)
        torch.testing.assert_close(ours.transpose(1, 2), theirs)


@pytest.mark.parametrize("more", ["softcap", "s_aux", "sinks"])
def test_what_matrix_products_do_not_compute_is_refused_and_not_dropped(more):
    heads = [torch.randn(1, 2, 5, 8) for _ in range(3)]
    with pytest.raises(CheckpointError, match=more):
        matmul_attention(nn.Identity(), *heads, None, **{more: torch.ones(2)})
    matmul_attention(nn.Identity(), *heads, None, **{more: None})


@pytest.mark.parametrize(
    ("model_type", "expected"),
    [("llama", MATMUL_ATTENTION), ("gemma2", "eager"), ("gpt_oss", "eager"), ("falcon", "sdpa"), ("mamba", "eager")],
)
def test_auto_takes_what_the_family_computes_its_attention_by(model_type, expected):
    takes = attentions_of(find_class(AutoConfig.for_model(model_type)))
    assert choose_attention("auto", dtype="bfloat16", bfloat16_is_fast=True, takes=takes) == expected
    slow = choose_attention("auto", dtype="float32", bfloat16_is_fast=False, takes=takes)
    assert slow == ("eager" if expected == "eager" else "sdpa")
    assert choose_attention("eager", dtype="bfloat16", bfloat16_is_fast=True, takes=takes) == "eager"


def test_an_attention_that_the_family_lacks_is_refused_before_anything_is_loaded():
    takes = attentions_of(find_class(AutoConfig.for_model("gemma2")))
    with pytest.raises(ConfigError, match="sdpa, which Gemma2ForCausalLM"):
        choose_attention("sdpa", dtype="float32", bfloat16_is_fast=False, takes=takes)
