"""Tensors beside a model's parameters come to the device that the parameters are brought to."""

from __future__ import annotations

import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from kappaspeech.zero3.partitioning import bring_buffers

# a device that is another than the CPU on any machine
ELSEWHERE = torch.device("meta")


def test_every_buffer_is_brought_and_no_parameter():
    """They stayed on the host beside a GPU: an index of trained experts then lay on another device than its tensor."""
    model = nn.ModuleList(
        [LlamaForCausalLM(LlamaConfig(hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2))]
    )
    model[0].model.layers[0].mlp.register_buffer("experts_index", torch.tensor([1, 3]), persistent=False)
    in_files = set(model.state_dict())
    bring_buffers(model, ELSEWHERE)
    brought = dict(model.named_buffers())
    assert {"0.model.rotary_emb.inv_freq", "0.model.layers.0.mlp.experts_index"} <= set(brought)
    assert {buffer.device for buffer in brought.values()} == {ELSEWHERE}
    assert {parameter.device.type for parameter in model.parameters()} == {"cpu"}
    assert set(model.state_dict()) == in_files
