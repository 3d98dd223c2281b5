"""LoRA's factors: where they go, what they are called in files, and that merging them gives the model that trained."""

from __future__ import annotations

import re

import pytest
import torch
from transformers import GptOssConfig, GptOssForCausalLM, Qwen3MoeConfig, Qwen3MoeForCausalLM

from kappaspeech.errors import SelectionError
from kappaspeech.model.freezing import check_tensors_are_stored, unfreeze
from kappaspeech.model.llm import load_llm
from kappaspeech.model.lora import LoraShape, add_lora, is_factor, linear_tensors, merge, public_names

SHAPE = LoraShape(rank=2, alpha=6.0, dropout=0.0)
IDS = torch.arange(12)[None]
SIZES = {
    "vocab_size": 64,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 4,
    "max_position_embeddings": 128,
    "num_experts_per_tok": 2,
}


def qwen_moe(hidden: int = 12) -> Qwen3MoeForCausalLM:
    """Fused experts that lie as (expert, output, input)."""
    torch.manual_seed(0)
    return Qwen3MoeForCausalLM(Qwen3MoeConfig(**SIZES, intermediate_size=24, moe_intermediate_size=hidden, num_experts=4)).eval()


def gpt_oss() -> GptOssForCausalLM:
    """Fused experts that lie as (expert, input, output), and a square one, whose shape doesn't say so."""
    torch.manual_seed(0)
    return GptOssForCausalLM(GptOssConfig(**SIZES, intermediate_size=16, num_local_experts=4)).eval()


def llama(home) -> torch.nn.Module:
    return load_llm(str(home / "llm"), dtype=torch.float32)


def fill(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Give every factor random values, as training would; return them by their public names."""
    names, trained = public_names(model), {}
    generator = torch.Generator().manual_seed(5)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.1
            trained[names[name]] = parameter.detach().clone()
    return trained


CASES = {
    "linear modules": (
        llama,
        ["model.layers.0.self_attn.q_proj.weight", "model.layers.1.mlp.down_proj.weight", "lm_head.weight"],
    ),
    "fused experts": (
        lambda _home: qwen_moe(),
        [
            "model.layers.0.mlp.experts.gate_up_proj",
            "model.layers.0.mlp.experts.down_proj",
            "model.layers.1.self_attn.k_proj.weight",
        ],
    ),
    "transposed experts": (
        lambda _home: gpt_oss(),
        ["model.layers.0.mlp.experts.gate_up_proj", "model.layers.1.mlp.experts.down_proj"],
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_merging_gives_the_model_that_trained(home, case):
    make, names = CASES[case]
    base, adapted = make(home), make(home)
    shape = add_lora(adapted, names, SHAPE, seed=1)
    with torch.no_grad():
        before = base(input_ids=IDS).logits
        torch.testing.assert_close(adapted(input_ids=IDS).logits, before, rtol=0, atol=1e-6)
        trained = fill(adapted)
        for name, parameter in base.named_parameters():
            merged = merge(name, parameter, trained, shape)
            assert (merged is not parameter) == (name in names)
            parameter.data = merged
        after = base(input_ids=IDS).logits
        torch.testing.assert_close(after, adapted(input_ids=IDS).logits, rtol=1e-4, atol=1e-6)
        assert (after - before).abs().max() > 1e-3


@pytest.mark.parametrize("case", CASES)
def test_exactly_the_factors_train_under_the_names_of_what_they_change(home, case):
    make, names = CASES[case]
    model = make(home)
    untouched = {name for name, _ in model.named_parameters()}
    add_lora(model, names, SHAPE, seed=1)
    public = public_names(model)
    trained = {public[name] for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trained == {f"{name.removesuffix('.weight')}.lora_{factor}.weight" for name in names for factor in "AB"}
    assert all(map(is_factor, trained))
    assert {public[name] for name, parameter in model.named_parameters() if not parameter.requires_grad} == untouched
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


def test_factors_are_a_function_of_the_seed(home):
    first, same, other = llama(home), llama(home), llama(home)
    for model, seed in ((first, 1), (same, 1), (other, 2)):
        torch.manual_seed(seed + 40)
        add_lora(model, linear_tensors(model), SHAPE, seed=seed)
    name = "model.layers.0.mlp.up_proj.lora_A.default.weight"
    weights = [dict(model.named_parameters())[name] for model in (first, same, other)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_without_a_selection_every_linear_module_but_the_head_is_adapted(home):
    kinds = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj")
    kinds = (*kinds, "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")
    assert sorted(linear_tensors(llama(home))) == sorted(f"model.layers.{i}.{kind}.weight" for i in (0, 1) for kind in kinds)


def test_what_lora_can_not_adapt_is_refused_by_name(home):
    with pytest.raises(SelectionError, match=r"model\.embed_tokens\.weight"):
        add_lora(llama(home), ["model.embed_tokens.weight"], SHAPE, seed=1)
    with pytest.raises(SelectionError, match=r"experts\.down_proj\) can't have dropout"):
        add_lora(qwen_moe(), ["model.layers.0.mlp.experts.down_proj"], LoraShape(2, 4.0, 0.1), seed=1)


def test_lora_on_single_experts_is_refused_by_name_with_the_remedy():
    from kappaspeech.config.model_config import UnfreezeConfig
    from kappaspeech.model.marking import mark_trained
    from kappaspeech.selection.tensor_selection import SelectedTensor, TensorSelection

    fused, apart = "model.layers.0.mlp.experts.down_proj[2]", "model.layers.0.mlp.experts.2.down_proj.weight"
    options = UnfreezeConfig(mode="lora", selection="by hand")
    for name, remedy in ((fused, "--experts together"), (apart, r"--exclude '\*\.experts\.\*'")):
        selection = TensorSelection("", "", "", "", (SelectedTensor(name, (16, 12), 1.0),))
        with pytest.raises(SelectionError, match=f"{re.escape(name)}.*{remedy}"):
            mark_trained(qwen_moe(), options, selection, seed=1)


def test_experts_train_as_a_scan_of_the_files_names_them_whether_these_have_them_apart_or_fused(tmp_path):
    from kappaspeech.ranks.cluster import SingleProcess
    from kappaspeech.scan.checkpoint import open_checkpoint
    from kappaspeech.scan.stage import scan
    from kappaspeech.selection.rules import Count
    from kappaspeech.selection.select import select

    for name, options in (("apart", {}), ("fused", {"save_original_format": False})):
        qwen_moe().save_pretrained(tmp_path / name, **options)
        ranking = scan(open_checkpoint(str(tmp_path / name)), cluster=SingleProcess())
        selection = select(ranking, Count(1), include=["model.layers.1.mlp.experts.*down_proj*"])
        llm = load_llm(str(tmp_path / name), dtype=torch.float32)
        (trained,) = unfreeze(llm, selection.shapes)
        assert trained.startswith("model.layers.1.mlp.experts.down_proj_trained")
        assert llm.get_parameter(trained).shape == (1, 16, 12)
    whole = select(ranking, Count(1), include=["model.layers.1.mlp.experts.*down_proj*"], experts="together")
    assert unfreeze(llm, whole.shapes) == ["model.layers.1.mlp.experts.down_proj"]
    apart = load_llm(str(tmp_path / "apart"), dtype=torch.float32)
    with pytest.raises(SelectionError, match=r"experts\.gate_up_proj.*save_original_format=False"):
        check_tensors_are_stored(apart, [ref.name for ref in open_checkpoint(str(tmp_path / "apart")).tensors])


def test_an_expert_that_is_fused_in_a_way_of_its_own_is_refused_with_the_remedy():
    with pytest.raises(SelectionError, match=r"place isn't known.*save_original_format=False"):
        unfreeze(qwen_moe(), {"model.layers.1.mlp.experts.2.sideways.weight": (16, 12)})


def test_codes_of_a_quantised_model_are_refused_as_codes():
    llm = torch.nn.Sequential(torch.nn.Linear(6, 4))
    llm[0].weight = torch.nn.Parameter(torch.zeros(12, 1, dtype=torch.uint8), requires_grad=False)
    with pytest.raises(SelectionError, match=r"0\.weight is quantised.*unquantised model"):
        unfreeze(llm, {"0.weight": (4, 6)})
