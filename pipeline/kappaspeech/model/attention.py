"""Attention by plain matrix products, for bfloat16 on processors.

PyTorch's fused attention computes in float32 on a CPU. If the processor multiplies in bfloat16 itself, two products and a softmax
take a third of its time or less, forward and backward, at the lengths that speech has here.

B batch · H query heads · C key-value heads · G query heads to a key-value head · Q queries · K keys · D head width · W width of a
value's head
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from kappaspeech.errors import CheckpointError

MATMUL_ATTENTION = "kappaspeech_matmul"
# arguments that transformers gives to attentions and this one doesn't compute: logits' caps, and sinks beside the keys
_NOT_COMPUTED = ("softcap", "s_aux", "sinks")


def register_matmul_attention() -> str:
    """Make `matmul_attention` known to transformers; return the name to give as `attn_implementation`."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import eager_mask

    AttentionInterface.register(MATMUL_ATTENTION, matmul_attention)
    AttentionMaskInterface.register(MATMUL_ATTENTION, eager_mask)
    return MATMUL_ATTENTION


def matmul_attention(
    module: nn.Module,
    query_BHQD: Tensor,
    key_BCKD: Tensor,
    value_BCKW: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    position_bias: Tensor | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """softmax(Q·Kᵀ·scaling + mask + bias)·V as (B, Q, H, W), by transformers' interface. `attention_mask` is added to the scores.

    Raises `CheckpointError` if a model's attention is more than that.
    """
    more = [name for name in _NOT_COMPUTED if others.get(name) is not None]
    if more:
        raise CheckpointError(
            f"{type(module).__name__} has {' and '.join(more)} in its attention, which matrix products alone don't compute. "
            "Set model.attn_implementation to eager."
        )
    batch, num_heads, num_queries, width = query_BHQD.shape
    num_keys, value_width = key_BCKD.shape[2], value_BCKW.shape[3]
    # a key-value head meets all its queries in one product, and isn't repeated for each query head
    query = query_BHQD.reshape(-1, num_heads // key_BCKD.shape[1] * num_queries, width)
    key, value = key_BCKD.reshape(-1, num_keys, width), value_BCKW.reshape(-1, num_keys, value_width)
    scale = width**-0.5 if scaling is None else scaling
    added = attention_mask
    if position_bias is not None:
        added = position_bias if added is None else added + position_bias
    scores_BHQK = torch.bmm(query, key.transpose(1, 2)).view(batch, num_heads, num_queries, num_keys)
    scores_BHQK = scores_BHQK * scale if added is None else torch.add(added, scores_BHQK, alpha=scale)
    weights_BHQK = nn.functional.dropout(scores_BHQK.softmax(-1), dropout, module.training)
    mixed = torch.bmm(weights_BHQK.view(len(query), -1, num_keys), value)
    return mixed.view(batch, num_heads, num_queries, value_width).transpose(1, 2), None
