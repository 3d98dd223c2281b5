from __future__ import annotations

from kappaspeech.expert_names import expert_name, split_expert


def test_an_experts_name_says_its_tensor_and_its_number():
    assert expert_name("mlp.experts.down_proj", 12) == "mlp.experts.down_proj[12]"
    assert split_expert("mlp.experts.down_proj[12]") == ("mlp.experts.down_proj", 12)


def test_a_whole_tensor_has_no_number():
    for name in ("mlp.experts.12.down_proj.weight", "mlp.0.weight", "w[x]", "[3]"):
        assert split_expert(name) == (name, None)
