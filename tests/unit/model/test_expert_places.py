"""The place in the model of an expert of a checkpoint's files, against the tensors that transformers loads there."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file

from kappaspeech.model.expert_places import ExpertPlace, find_places
from kappaspeech.model.llm import load_llm
from kappaspeech.model.meta_llm import build_meta_llm
from tests.families import make_llm

# files that store each expert apart under two layouts' names, and one whose layout is another's with experts of its own
APART = ("Mixtral", "Qwen3-MoE", "OLMoE", "DeepSeek-V3")
# stored fused; the last as (expert, input, output)
FUSED = ("Granite-MoE", "gpt-oss")


@pytest.mark.parametrize("family", APART)
def test_experts_that_are_stored_apart_are_found_where_transformers_loads_them(tmp_path, family):
    make_llm(family).save_pretrained(tmp_path)
    stored = {name: tensor for name, tensor in load_file(tmp_path / "model.safetensors").items() if ".experts." in name}
    stored = {name: tensor for name, tensor in stored.items() if "shared" not in name}
    llm = load_llm(str(tmp_path), dtype=torch.float32)
    shapes = {name: tuple(tensor.shape) for name, tensor in stored.items()}
    places = find_places(build_meta_llm(str(tmp_path)), shapes)
    assert places == find_places(llm, shapes)
    assert set(places) == set(stored)
    assert len(stored) >= 4 * 3
    for name, place in places.items():
        assert torch.equal(place.of(llm.get_parameter(place.parameter)), stored[name]), name


@pytest.mark.parametrize("family", [*APART, *FUSED])
def test_an_expert_of_a_tensor_that_is_stored_fused_is_found_by_its_number(tmp_path, family):
    make_llm(family).save_pretrained(tmp_path, save_original_format=False)
    stored = {name: tensor for name, tensor in load_file(tmp_path / "model.safetensors").items() if tensor.dim() == 3}
    assert stored
    llm = build_meta_llm(str(tmp_path))
    for name, tensor in stored.items():
        assert find_places(llm, {f"{name}[1]": tensor.shape[1:]}) == {f"{name}[1]": ExpertPlace(name, 1, 0, tensor.shape[1])}


def test_whole_tensors_absent_ones_and_other_shapes_have_no_place():
    llm = make_llm("Mixtral")
    fused = "model.layers.0.mlp.experts.down_proj"
    apart = "model.layers.0.block_sparse_moe.experts.3.w2.weight"
    shape = tuple(llm.get_parameter(fused).shape)
    assert find_places(llm, {apart: shape[1:], f"{fused}[3]": shape[1:]}).keys() == {apart, f"{fused}[3]"}
    others = {fused: shape, f"{fused}[4]": shape[1:], f"{fused}[0]": shape[:2], "model.gone[0]": shape[1:]}
    others |= {apart.replace(".3.", ".4."): shape[1:], "model.layers.0.self_attn.q_proj.weight": (32, 32)}
    assert find_places(llm, others) == {}
    assert find_places(make_llm("Llama"), {apart: shape[1:]}) == {}
