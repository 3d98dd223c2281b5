"""The trainable bridge from encoder states to LLM embeddings.

B batch · S encoder states · E encoder width · K stacking factor · A audio positions, ⌈S/K⌉ · F stacked width, K·E ·
D adaptor width · H LLM width
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

_MAX_TIMESCALE = 10_000.0
_NUM_ATTENTION_LAYERS = 2
# as many positions as Whisper's 30 s have at the usual stacking
_MADE_POSITIONS = 375


@dataclass(frozen=True)
class AdaptorShape:
    """The options of the adaptor. `embedding_std` is the scale of the embeddings that it speaks to."""

    encoder_width: int
    llm_width: int
    width: int
    num_heads: int
    stacking: int
    dropout: float
    embedding_std: float


class Adaptor(nn.Module):
    """Sub-sampling by concatenation, linear projection, layer norm, and two attention layers with positions.

    arXiv:2506.16289, section on the speech model. The output is normalised to the standard deviation of the LLM's token
    embeddings: a Llama's are small (0.1 in SmolLM2), and positions ten times louder than its words drown them.
    """

    def __init__(self, shape: AdaptorShape) -> None:
        super().__init__()
        if shape.width % shape.num_heads:
            raise ValueError(f"adaptor width {shape.width} isn't a multiple of its {shape.num_heads} heads")
        self.shape = shape
        self.project = nn.Linear(shape.stacking * shape.encoder_width, shape.width)
        self.norm = nn.LayerNorm(shape.width)
        self.layers = nn.ModuleList(_SelfAttention(shape) for _ in range(_NUM_ATTENTION_LAYERS))
        self.to_llm = nn.Linear(shape.width, shape.llm_width)
        self.output_norm = nn.LayerNorm(shape.llm_width)
        # no buffer: it is in no checkpoint, and no rank broadcasts it
        self._sinusoids: Tensor | None = None

    def forward(self, states_BSE: Tensor, num_states_B: Tensor) -> tuple[Tensor, Tensor]:
        """Map states (B, S, E), zero past `num_states_B`, to audio embeddings (B, A, H) and their counts (B,).

        The counts lie on the same device as the states' counts: on the host, so that reading them waits for no device.
        """
        stacked_BAF = stack_states(states_BSE, self.shape.stacking)
        num_audio_B = torch.div(num_states_B + self.shape.stacking - 1, self.shape.stacking, rounding_mode="floor")
        length = stacked_BAF.shape[1]
        key_mask_BA = torch.arange(length, device=num_audio_B.device)[None] < num_audio_B[:, None]
        # A clip without states (a zero-weight stand-in) still needs one key, or its softmax is NaN.
        key_mask_BA = (key_mask_BA | (num_audio_B == 0)[:, None]).to(states_BSE.device, non_blocking=True)
        hidden_BAD = self.norm(self.project(stacked_BAF.to(self.project.weight.dtype)))
        hidden_BAD = hidden_BAD + self._positions(length, hidden_BAD)
        for layer in self.layers:
            hidden_BAD = layer(hidden_BAD, key_mask_BA)
        audio_BAH = self.output_norm(self.to_llm(hidden_BAD)) * self.shape.embedding_std
        return audio_BAH, num_audio_B

    def _positions(self, length: int, like: Tensor) -> Tensor:
        """Sinusoids (length, D) in the dtype and on the device of `like`, kept there for the next batch."""
        kept = self._sinusoids
        if kept is None or len(kept) < length or (kept.dtype, kept.device) != (like.dtype, like.device):
            kept = self._sinusoids = sinusoids(max(length, _MADE_POSITIONS), self.shape.width).to(like)
        return kept[:length]


class _SelfAttention(nn.Module):
    """Pre-norm multi-head self-attention with a residual path."""

    def __init__(self, shape: AdaptorShape) -> None:
        super().__init__()
        self.num_heads = shape.num_heads
        self.dropout = shape.dropout
        self.norm = nn.LayerNorm(shape.width)
        self.query_key_value = nn.Linear(shape.width, 3 * shape.width)
        self.out = nn.Linear(shape.width, shape.width)

    def forward(self, hidden_BAD: Tensor, key_mask_BA: Tensor) -> Tensor:
        batch, length, width = hidden_BAD.shape
        heads = self.query_key_value(self.norm(hidden_BAD)).view(batch, length, 3, self.num_heads, width // self.num_heads)
        query, key, value = heads.permute(2, 0, 3, 1, 4)
        dropout = self.dropout if self.training else 0.0
        mixed = functional.scaled_dot_product_attention(query, key, value, key_mask_BA[:, None, None], dropout_p=dropout)
        update = self.out(mixed.transpose(1, 2).reshape(batch, length, width))
        return hidden_BAD + functional.dropout(update, self.dropout, self.training)


def stack_states(states_BSE: Tensor, stacking: int) -> Tensor:
    """Concatenate each run of `stacking` neighbours: (B, S, E) → (B, ⌈S/K⌉, K·E), the last run filled with zeros."""
    batch, num_states, width = states_BSE.shape
    missing = -num_states % stacking
    padded = functional.pad(states_BSE, (0, 0, 0, missing))
    return padded.reshape(batch, (num_states + missing) // stacking, stacking * width)


def sinusoids(length: int, width: int) -> Tensor:
    """Sinusoidal positions (length, width) in float32: sines, then cosines, over geometric time-scales (Vaswani 2017)."""
    half = width // 2
    rates = torch.exp(-math.log(_MAX_TIMESCALE) / max(half - 1, 1) * torch.arange(half))
    angles = torch.arange(length)[:, None] * rates[None]
    return functional.pad(torch.cat([angles.sin(), angles.cos()], dim=1), (0, width - 2 * half))
