"""The count from shapes against torch's own, which watches the operations themselves."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from kappaspeech.model.adaptor import AdaptorShape
from kappaspeech.model.encoder import load_encoder
from kappaspeech.model.flops import ClipLengths, StackCost, speech_cost
from kappaspeech.model.freezing import unfreeze
from kappaspeech.model.llm import load_llm
from kappaspeech.model.speech_llm import SpeechLLM
from kappaspeech.model.trained import build_adaptor
from kappaspeech.selection.tensor_selection import TensorSelection
from tests import tiny

PREFIX, SUFFIX = torch.tensor([5, 6, 7]), torch.tensor([8, 9])
CLIPS = [ClipLengths(num_frames=64, num_labels=6)] * 3


@pytest.fixture
def encoder(home):
    return load_encoder(str(home / "whisper.pt"))


@pytest.fixture
def model(home, monkeypatch):
    # the counter knows no fused attention on the CPU: it must see the products
    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", plain_attention)
    llm = load_llm(str(home / "llm"), dtype=torch.float32)
    llm.set_attn_implementation("eager")
    unfreeze(llm, TensorSelection.read(home / "selection.json").shapes)
    return SpeechLLM(build_adaptor(AdaptorShape(tiny.ENCODER_WIDTH, 32, 32, 4, 4, 0.0, 0.1), seed=3), llm)


def plain_attention(query, key, value, attn_mask=None, dropout_p=0.0):
    del attn_mask, dropout_p
    return (query @ key.transpose(-1, -2)).softmax(-1) @ value


def counted(encoder, model) -> tuple[int, int, int]:
    labels = torch.arange(10, 16).expand(3, -1)
    log_mel, frames = torch.randn(3, 80, 64), torch.full((3,), 64)
    with FlopCounterMode(display=False) as of_encoder:
        states, num_states = encoder(log_mel, frames)
    with FlopCounterMode(display=False) as of_forward:
        loss, _ = model(states, num_states, PREFIX, SUFFIX, labels)
    with FlopCounterMode(display=False) as of_backward:
        loss.backward()
    return of_encoder.get_total_flops(), of_forward.get_total_flops(), of_backward.get_total_flops()


def test_a_step_counts_what_torch_counts(encoder, model):
    cost = speech_cost(encoder, model, num_prompt_tokens=5)
    step = cost.step(CLIPS)
    # rotary embeddings are a product of one position each, which isn't the model's work
    assert (step.encoder, step.forward, step.backward) == pytest.approx(counted(encoder, model), rel=2e-3)
    assert step.total == step.encoder + step.forward + step.backward


def test_without_the_llm_the_adaptor_and_the_encoder_are_left(encoder, model):
    cost = speech_cost(encoder, model, num_prompt_tokens=5)
    whole, aligned = cost.step(CLIPS), cost.without_llm().step(CLIPS)
    audio = [cost.num_llm_tokens(clip) - clip.num_labels - 5 for clip in CLIPS]
    assert aligned.encoder == whole.encoder
    assert aligned.forward == cost.adaptor.forward(audio) < whole.forward
    assert aligned.backward == cost.adaptor.backward(audio) < whole.backward


def test_backward_costs_more_the_more_trains(encoder, model):
    some = speech_cost(encoder, model, num_prompt_tokens=5).step(CLIPS)
    model.llm.requires_grad_(False)
    none = speech_cost(encoder, model, num_prompt_tokens=5).step(CLIPS)
    assert none.backward == pytest.approx(counted(encoder, model)[2], rel=2e-3)
    assert none.forward == some.forward
    assert none.backward < some.backward


def test_padding_to_30_s_costs_30_s_of_every_clip(home, encoder, model):
    padded = load_encoder(str(home / "whisper.pt"), pad_to_30s=True)
    cost = speech_cost(padded, model, num_prompt_tokens=5)
    full = speech_cost(encoder, model, num_prompt_tokens=5)
    whole = [ClipLengths(num_frames=3000, num_labels=6)] * 3
    assert cost.step(CLIPS).encoder == full.step(whole).encoder
    assert cost.step(CLIPS).forward == full.step(CLIPS).forward


def test_a_token_of_a_mixture_meets_its_experts_alone():
    from transformers import MixtralConfig, MixtralForCausalLM

    from kappaspeech.model.flops import _decoder_cost
    from kappaspeech.model.freezing import unfreeze

    config = MixtralConfig(
        vocab_size=11,
        hidden_size=8,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        num_local_experts=4,
        num_experts_per_tok=2,
    )
    with torch.device("meta"):
        llm = MixtralForCausalLM(config)
    attention, router, expert = 4 * 8 * 8, 4 * 8, 3 * 8 * 16
    weights = 2 * (attention + router + 2 * expert)
    assert _decoder_cost(llm.requires_grad_(False)) == StackCost(weights, 0, 2 * 8)
    # of one that trains alone, the gradient of all of its tensor is computed
    name = "model.layers.0.mlp.experts.down_proj"
    with torch.device("meta"):
        unfreeze(llm, {f"{name}[3]": (8, 16)})
    assert _decoder_cost(llm) == StackCost(weights, 2 * 8 * 16, 2 * 8)
    assert sum(p.numel() for p in llm.parameters() if p.requires_grad) == 8 * 16
