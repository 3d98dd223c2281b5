"""Clips in one row of the LLM against the same clips padded, over tiny models of many families by transformers' own classes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from kappaspeech.config.model_config import LoraConfig, UnfreezeConfig
from kappaspeech.errors import ConfigError
from kappaspeech.labels import IGNORED_LABEL
from kappaspeech.model.adaptor import AdaptorShape
from kappaspeech.model.attention import register_matmul_attention
from kappaspeech.model.family import attentions_of, find_class
from kappaspeech.model.label_logits import KeptStates
from kappaspeech.model.marking import mark_trained
from kappaspeech.model.packed_rows import check_packing, pack_lengths, pack_rows, packed_otherwise, why_not_packed
from kappaspeech.model.recomputation import recompute_layers
from kappaspeech.model.speech_llm import SpeechLLM, embedding_width, token_embedding_std
from kappaspeech.model.text_rows import TextRows, pad_texts
from kappaspeech.model.trained import build_adaptor
from tests.families import make_config, make_llm
from tests.unit.model.test_families import TRAINED

# what keeps a family's clips padded, by its config; and a family whose layers drop what its attention would have to know
OWN, EAGER = "takes no attention but its own", "is eager, and clips are packed for sdpa and kappaspeech_matmul"
PADDED = {
    **dict.fromkeys(("Qwen3-Next", "BLOOM", "Falcon", "StableLM", "MPT", "Mamba", "Mamba-2"), OWN),
    **dict.fromkeys(("Gemma-2", "gpt-oss"), EAGER),
}
DROPPED = "Nemotron"
# float32 sums in another order, relative to the largest gradient of a tensor
TOLERANCE = 2e-5
PREFIX, SUFFIX = torch.tensor([5, 6, 7]), torch.tensor([8, 9])
# lengths beyond the families' windows of 8; the third clip is masked
COUNTS = torch.tensor([61, 34, 2, 47])
LABELS = torch.full((4, 6), IGNORED_LABEL)
for place, ids in ((0, [20, 21, 22, 1]), (1, [30, 31, 32, 33, 34, 1]), (3, [40, 1])):
    LABELS[place, : len(ids)] = torch.tensor(ids)


def states() -> Tensor:
    values = torch.randn(4, 61, 16, generator=torch.Generator().manual_seed(0))
    return values * (torch.arange(61)[None] < COUNTS[:, None])[:, :, None]


def build(llm: Any, *, packs: bool = False, alignment_weight: float = 0.0) -> SpeechLLM:
    width = embedding_width(llm)
    shape = AdaptorShape(16, width, width, 4, 4, 0.0, token_embedding_std(llm))
    return SpeechLLM(build_adaptor(shape, seed=1), llm, packs=packs, alignment_weight=alignment_weight)


def run(model: SpeechLLM) -> tuple[float, dict[str, Tensor]]:
    model.zero_grad()
    loss, nats = model(states(), COUNTS, PREFIX, SUFFIX, LABELS)
    loss.backward()
    return float(nats), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def assert_packed_as_padded(llm: Any, attention: str, **options: Any) -> None:
    llm.set_attn_implementation(attention)
    nats, gradients = run(build(llm, **options))
    assert pack_rows(llm, attention)
    packed_nats, packed = run(build(llm, packs=True, **options))
    assert packed_nats == pytest.approx(nats, rel=1e-5)
    assert set(packed) == set(gradients)
    largest = max(float(gradient.abs().max()) for gradient in gradients.values())
    for name, gradient in gradients.items():
        tolerance = TOLERANCE * float(gradient.abs().max()) + 1e-7 * largest
        torch.testing.assert_close(packed[name], gradient, rtol=0, atol=tolerance, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("name", [name for name in TRAINED if name not in (*PADDED, DROPPED)])
def test_a_familys_packed_clips_have_the_loss_and_gradients_of_padded_ones(name):
    config = make_config(name)
    assert why_not_packed(config, "sdpa") is None
    assert_packed_as_padded(make_llm(name), "sdpa")


@pytest.mark.parametrize("name", PADDED)
def test_a_family_that_can_not_pack_is_told_by_name_and_why(name):
    config = make_config(name)
    obstacle = why_not_packed(config, attentions_of(find_class(config)).default)
    assert obstacle is not None
    assert PADDED[name] in obstacle
    assert find_class(config).__name__ in obstacle
    with pytest.raises(ConfigError, match=f"batch.packing is true, and .*{find_class(config).__name__}"):
        check_packing(True, obstacle)
    check_packing("auto", obstacle)


def test_layers_that_run_on_from_clip_to_clip_are_told_of_by_the_config():
    config = make_config("Llama")
    config.layer_types = ["linear_attention", "full_attention"]
    assert why_not_packed(config, "sdpa") == (
        "LlamaForCausalLM has layers of linear_attention, which would run on from one clip into the next"
    )


def test_a_model_whose_clips_would_see_each_other_is_found_out_and_left_as_it_was():
    """Its config says nothing of it: transformers' decoder layer takes the argument, and gives it to nobody."""
    llm = make_llm(DROPPED)
    assert why_not_packed(llm.config, "sdpa") is None
    assert not pack_rows(llm, "sdpa")
    assert llm.config._attn_implementation == "sdpa"
    assert packed_otherwise(llm) == "NemotronForCausalLM makes something else of clips in one row than of each alone"


@pytest.mark.parametrize("name", ["Llama", "Qwen3", "Mistral"])
def test_attention_by_matrix_products_packs_too(name):
    assert_packed_as_padded(make_llm(name), register_matmul_attention())


@pytest.mark.parametrize("number", [1, 2])
def test_layers_that_are_computed_again_see_their_clips_apart(number):
    llm = make_llm("Llama")
    nats, gradients = run(build(llm))
    assert pack_rows(llm, "sdpa")
    llm.train()
    assert recompute_layers(llm, number) == number
    again_nats, again = run(build(llm, packs=True))
    assert again_nats == pytest.approx(nats, rel=1e-5)
    for name, gradient in gradients.items():
        torch.testing.assert_close(again[name], gradient, rtol=0, atol=TOLERANCE * float(gradient.abs().max()) + 1e-6)


def test_lora_and_the_alignment_loss_train_alike_on_packed_clips():
    llm = make_llm("Llama")
    mark_trained(llm, UnfreezeConfig(mode="lora", lora=LoraConfig(rank=4, alpha=16.0, dropout=0.0)), None, seed=3)
    with torch.no_grad():
        for name, parameter in llm.named_parameters():
            # B begins at zero, and would leave A without a gradient
            if "lora_B" in name:
                parameter.normal_(std=0.1, generator=torch.Generator().manual_seed(1))
    assert_packed_as_padded(llm, "sdpa", alignment_weight=0.5)


@pytest.mark.parametrize("anchor_weight", [0.0, 2.0])
def test_texts_beside_the_clips_are_packed_with_them(anchor_weight):
    llm = make_llm("Llama")
    base = KeptStates(torch.randn(5, embedding_width(llm), generator=torch.Generator().manual_seed(2))) if anchor_weight else None
    text = TextRows(pad_texts([[11, 12, 13, 14], [15, 16, 17]]), 0.5, anchor_weight, base)

    def run_with_text(model: SpeechLLM) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        model.zero_grad()
        loss, _, sums = model(states(), COUNTS, PREFIX, SUFFIX, LABELS, text)
        loss.backward()
        return loss.detach(), sums, {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}

    loss, sums, gradients = run_with_text(build(llm))
    assert pack_rows(llm, "sdpa")
    packed_loss, packed_sums, packed = run_with_text(build(llm, packs=True))
    torch.testing.assert_close((packed_loss, packed_sums), (loss, sums), rtol=1e-5, atol=1e-5)
    for name, gradient in gradients.items():
        torch.testing.assert_close(packed[name], gradient, rtol=0, atol=TOLERANCE * float(gradient.abs().max()) + 1e-6)


def test_the_llm_computes_no_padding():
    llm = make_llm("Llama")
    assert pack_rows(llm, "sdpa")
    seen: list[int] = []
    for layer in llm.model.layers:
        layer.mlp.register_forward_pre_hook(lambda _mlp, inputs: seen.append(inputs[0].shape[:-1].numel()))
    run(build(llm, packs=True))
    positions = -(-COUNTS // 4)
    tokens = int((len(PREFIX) + positions + len(SUFFIX) + (LABELS != IGNORED_LABEL).sum(dim=1)).sum())
    assert seen == [tokens, tokens]


def test_a_pass_reads_nothing_back_from_its_device():
    """On the meta device nothing can be read: what would wait for a GPU fails, as does transformers' look for packed texts."""
    llm = make_llm("Llama")
    assert pack_rows(llm, "sdpa")
    model = build(llm, packs=True).to("meta")
    loss, _ = model(states().to("meta"), COUNTS, PREFIX, SUFFIX, LABELS)
    loss.backward()
    assert loss.is_meta


def test_the_places_of_a_row_lead_there_and_back():
    row = pack_lengths(torch.tensor([2, 3, 1]))
    assert (row.num_clips, row.longest) == (3, 3)
    assert row.position_ids.tolist() == [[0, 1, 0, 1, 2, 0]]
    assert row.tokens_BL[row.places_N].tolist() == list(range(6))


def test_a_batch_without_labels_still_reaches_every_module():
    llm = make_llm("Llama")
    assert pack_rows(llm, "sdpa")
    model = build(llm, packs=True)
    loss, _ = model(states()[:1], COUNTS[:1], PREFIX, SUFFIX, LABELS[2:3])
    loss.backward()
    assert float(loss.detach()) == 0
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_what_is_not_packed_is_computed_as_before_also_with_padding_at_the_left():
    llm = make_llm("Llama")
    ids, seen = torch.tensor([[3, 4, 5, 6], [8, 9, 10, 11]]), torch.tensor([[1, 1, 1, 1], [0, 0, 1, 1]])

    def use() -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            logits = llm(input_ids=ids, attention_mask=seen, use_cache=False).logits[seen.bool()]
        return logits, llm.generate(ids, attention_mask=seen, max_new_tokens=4, do_sample=False)

    before = use()
    assert pack_rows(llm, "sdpa")
    assert all(torch.equal(one, other) for one, other in zip(before, use(), strict=True))
