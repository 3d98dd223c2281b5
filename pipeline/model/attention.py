"""Attention by plain matrix products, for bfloat16 on processors.

PyTorch's fused attention computes in float32 on a CPU. Where the processor multiplies in bfloat16 itself, two products and a
softmax take a third of its time or less, forward and backward, at the lengths that speech has here.

B batch · H query heads · C key-value heads · G query heads to a key-value head · Q queries · K keys · D head width
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

MATMUL_ATTENTION = "kappaspeech_matmul"


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
    value_BCKD: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **_: Any,
) -> tuple[Tensor, None]:
    """softmax(Q·Kᵀ·scaling + mask)·V as (B, Q, H, D), by transformers' interface. `attention_mask` is added to the scores."""
    batch, num_heads, num_queries, width = query_BHQD.shape
    num_keys = key_BCKD.shape[2]
    # a key-value head meets all its queries in one product, and isn't repeated for each query head
    query = query_BHQD.reshape(-1, num_heads // key_BCKD.shape[1] * num_queries, width)
    key, value = key_BCKD.reshape(-1, num_keys, width), value_BCKD.reshape(-1, num_keys, width)
    scale = width**-0.5 if scaling is None else scaling
    scores_BHQK = torch.bmm(query, key.transpose(1, 2)).view(batch, num_heads, num_queries, num_keys)
    scores_BHQK = scores_BHQK * scale if attention_mask is None else torch.add(attention_mask, scores_BHQK, alpha=scale)
    weights_BHQK = nn.functional.dropout(scores_BHQK.softmax(-1), dropout, module.training)
    mixed = torch.bmm(weights_BHQK.view(len(query), -1, num_keys), value)
    return mixed.view(batch, num_heads, num_queries, width).transpose(1, 2), None
