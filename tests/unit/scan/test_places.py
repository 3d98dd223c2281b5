"""The place of a matrix in its model, and names that a terminal has room for."""

from __future__ import annotations

import pytest

from kappaspeech.scan.places import Place, find_place, short_modules, short_names


@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("model.layers.10.self_attn.v_proj.weight", Place("model.layers", 10, "self_attn.v_proj")),
        ("decoder.blocks.3.cross_attn.query.weight", Place("decoder.blocks", 3, "cross_attn.query")),
        ("model.layers.2.mlp.experts.gate_up_proj[7]", Place("model.layers", 2, "mlp.experts.gate_up_proj")),
        ("model.layers.2.mlp.experts.7.up_proj.weight", Place("model.layers", 2, "mlp.experts.up_proj")),
        ("encoder.blocks.0.mlp.2.weight", Place("encoder.blocks", 0, "mlp.2")),
        ("model.embed_tokens.weight", None),
    ],
)
def test_a_name_has_a_tower_a_layer_and_a_module(name, place):
    assert find_place(name) == place


def test_modules_keep_as_many_words_as_tell_them_apart():
    assert short_modules(["attn.query", "cross_attn.query", "mlp.up"]) == {
        "attn.query": "attn.query",
        "cross_attn.query": "cross_attn.query",
        "mlp.up": "up",
    }


def test_names_lose_what_all_share_and_stay_different():
    one = ["model.layers.10.self_attn.v_proj.weight", "model.layers.2.mlp.experts.up[3]", "model.embed_tokens.weight"]
    assert list(short_names(one).values()) == ["10.self_attn.v_proj", "2.mlp.experts.up[3]", "embed_tokens"]
    two = ["encoder.blocks.0.attn.query.weight", "decoder.blocks.0.attn.query.weight"]
    assert list(short_names(two).values()) == ["encoder.0.attn.query", "decoder.0.attn.query"]
    twins = ["model.layers.0.a.weight", "model.layers.0.a"]
    assert list(short_names(twins).values()) == twins
