"""Layers that are computed again: how many, which ones, and that nothing else changes."""

from __future__ import annotations

import pytest
import torch

from kappaspeech.errors import ConfigError
from kappaspeech.model.recomputation import count_recomputed, recompute_layers

NUM_LAYERS = 3


@pytest.fixture
def llm():
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    shape = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4, "num_key_value_heads": 2}
    return LlamaForCausalLM(LlamaConfig(vocab_size=64, num_hidden_layers=NUM_LAYERS, **shape)).train()


def loss_and_gradients(llm):
    """With the layers' numbers in the order in which their MLPs were computed."""
    passes: list[int] = []
    hooks = [
        layer.mlp.register_forward_pre_hook(lambda *_, index=index: passes.append(index))
        for index, layer in enumerate(llm.model.layers)
    ]
    llm.zero_grad()
    ids = torch.arange(24).reshape(2, 12)
    loss = llm(input_ids=ids, labels=ids, use_cache=False).loss
    loss.backward()
    for hook in hooks:
        hook.remove()
    return passes, loss.detach(), {name: p.grad for name, p in llm.named_parameters()}


@pytest.mark.parametrize("number", range(NUM_LAYERS + 1))
def test_the_first_layers_are_computed_again_and_no_bit_changes(llm, number):
    assert recompute_layers(llm, False) == 0
    _, loss, gradients = loss_and_gradients(llm)
    assert recompute_layers(llm, number) == number
    passes, again, same = loss_and_gradients(llm)
    assert passes == [*range(NUM_LAYERS), *reversed(range(number))]
    assert torch.equal(again, loss)
    assert all(torch.equal(same[name], gradient) for name, gradient in gradients.items())


def test_a_choice_takes_the_place_of_the_one_before(llm):
    for wanted, number in (("auto", 2), (1, 1), (True, 3), (0, 0), (2, 2), (False, 0)):
        assert recompute_layers(llm, wanted) == number
        assert len(loss_and_gradients(llm)[0]) == NUM_LAYERS + number


def test_more_layers_than_there_are_is_told(llm):
    with pytest.raises(ConfigError, match=r"activation_checkpointing is 4, and this LLM has 3 layers\. Give at most"):
        recompute_layers(llm, 4)
    assert (count_recomputed(True, num_layers=3), count_recomputed(1, num_layers=3)) == (3, 1)
