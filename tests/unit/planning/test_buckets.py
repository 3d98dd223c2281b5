"""Sizes of what ZeRO-3 gathers ahead, from the model's shape."""

from __future__ import annotations

from kappaspeech.planning.buckets import settle_buckets


def test_two_layers_are_gathered_ahead_unless_the_json_says_otherwise():
    """A layer of Llama-3.1-70B has 856 M elements: more than DeepSpeed's default limit leaves room for beside one in use."""
    for size in ({}, {"stage3_prefetch_bucket_size": "auto", "stage3_param_persistence_threshold": "auto"}):
        settled = settle_buckets({"zero_optimization": {"stage": 3, **size}}, layer_elements=856_000_000)
        assert settled["zero_optimization"] == {
            "stage": 3,
            "stage3_prefetch_bucket_size": 1_712_000_000,
            "stage3_max_live_parameters": 2_568_000_000,
        }
    said = {"zero_optimization": {"stage3_prefetch_bucket_size": 7, "stage3_max_live_parameters": 8, "sub_group_size": 9}}
    assert settle_buckets(said, layer_elements=856_000_000) == said


def test_a_layer_of_many_experts_does_not_fill_the_memory_with_two_more():
    """DeepSeek-V3's layers have some 11 billion elements, of 2 bytes each."""
    zero = settle_buckets({"zero_optimization": {"stage": 3}}, layer_elements=11_300_000_000)["zero_optimization"]
    assert zero["stage3_prefetch_bucket_size"] == 2_000_000_000
    assert zero["stage3_max_live_parameters"] == 13_300_000_000
