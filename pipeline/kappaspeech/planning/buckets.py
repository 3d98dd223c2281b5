"""Settings of a DeepSpeed JSON that follow from the model's shape and the memory if the JSON leaves them open."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# Room for a layer in use and two that are prefetched, and no less than DeepSpeed 0.19's own limit.
_LIVE_ELEMENTS = 1_000_000_000
_PREFETCHED_LAYERS = 2
# No more than this is prefetched: a layer of many experts may have tens of gigabytes.
_MOST_PREFETCHED_ELEMENTS = 2_000_000_000
_AUTO = "auto"


def settle_buckets(deepspeed_config: Mapping[str, Any], *, layer_elements: int) -> dict[str, Any]:
    """A DeepSpeed JSON whose sizes, if it is silent or says "auto", suit a model whose largest layer has so many elements.

    A layer is gathered whole, so that DeepSpeed's own prefetch of 5e7 elements leaves a part of every large one to be waited
    for: with two layers ahead, and room for them beside the one in use, nothing is. Other sizes that are "auto", a word that
    DeepSpeed itself doesn't know, become DeepSpeed's defaults.
    """
    settled = dict(deepspeed_config)
    zero = {key: value for key, value in settled.get("zero_optimization", {}).items() if value != _AUTO}
    prefetched = min(_PREFETCHED_LAYERS * layer_elements, _MOST_PREFETCHED_ELEMENTS)
    zero.setdefault("stage3_prefetch_bucket_size", prefetched)
    zero.setdefault("stage3_max_live_parameters", max(_LIVE_ELEMENTS, layer_elements + prefetched))
    return {**settled, "zero_optimization": zero}


def leaves_frozen_to_memory(deepspeed_config: Mapping[str, Any]) -> bool:
    """True if a DeepSpeed JSON lets frozen weights of any size stay whole on each rank that has room: by "auto" as threshold."""
    return bool(deepspeed_config.get("zero_optimization", {}).get("stage3_param_persistence_threshold") == _AUTO)
