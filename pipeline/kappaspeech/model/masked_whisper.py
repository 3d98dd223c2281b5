"""Whisper's encoder with a key mask, on inputs of any length or padded to its native 30 s; and modules for its weights.

An export holds this file as it is, so it needs torch alone.

B batch · M mel channels · T log-mel frames (10 ms) · S encoder states (20 ms) · E encoder width · H heads
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

_FRAMES_PER_SECOND = 100
# Whisper's normalised log-mel spans 8 decades of power, divided by 4: silence lies 2 below a clip's loudest cell.
_LOG_MEL_RANGE = 2.0


@dataclass(frozen=True)
class EncoderDims:
    """The dimensions of an encoder that the rest of the pipeline must know."""

    num_mels: int
    width: int
    max_states: int
    frames_per_state: int = 2

    @property
    def seconds_per_state(self) -> float:
        return self.frames_per_state / _FRAMES_PER_SECOND

    @property
    def max_seconds(self) -> float:
        """The longest clip that the encoder has positions for."""
        return self.max_states * self.seconds_per_state

    def count_states(self, num_frames: int) -> int:
        """The number of states of a clip of `num_frames` log-mel frames."""
        return -(-num_frames // self.frames_per_state)


class MaskedWhisperEncoder(nn.Module):
    """openai-whisper's `AudioEncoder`, or `WhisperWeights`, with a key mask.

    The stock forward asserts 3,000 frames, so that a two-second clip costs as much as thirty seconds. Here a clip is encoded at
    its own length, independently of the other clips of its batch: positions past its end are zeroed before each convolution and
    masked as keys. With `pad_to_30s` every clip is filled up with silence instead, as Whisper was trained.
    """

    def __init__(self, audio_encoder: nn.Module, dims: EncoderDims, *, pad_to_30s: bool = False) -> None:
        super().__init__()
        self.whisper: Any = audio_encoder
        self.dims = dims
        self.pad_to_30s = pad_to_30s

    @property
    def dtype(self) -> torch.dtype:
        """The dtype in which log-mels are encoded and states are returned."""
        dtype: torch.dtype = self.whisper.conv1.weight.dtype
        return dtype

    @torch.no_grad()
    def forward(self, log_mel_BMT: Tensor, num_frames_B: Tensor) -> tuple[Tensor, Tensor]:
        """Encode log-mels (B, M, T), zero past `num_frames_B`, into states (B, S, E) and their counts (B,), S = ⌈T/2⌉.

        States past a clip's count are zero. `num_frames_B`, and with it the counts, may lie on the CPU. Beside a GPU it should:
        reading the lengths from a tensor on the GPU would wait for it. Raises `ValueError` if a clip is longer than the encoder's
        positions (30 s).
        """
        longest = int(num_frames_B.max())
        max_frames = self.dims.max_states * self.dims.frames_per_state
        if longest > max_frames:
            raise ValueError(f"a clip of {longest} frames exceeds the encoder's {max_frames} (30 s); cut it first")
        uniform = bool((num_frames_B == longest).all())
        counts_B = (num_frames_B + self.dims.frames_per_state - 1) // self.dims.frames_per_state
        num_frames_B, num_states_B = num_frames_B.to(log_mel_BMT.device), counts_B.to(log_mel_BMT.device)
        num_states = self.dims.count_states(longest)
        log_mel_BMT = log_mel_BMT[:, :, :longest].to(self.dtype)
        if self.pad_to_30s:
            states_BSE = self._encode(_fill_with_silence(log_mel_BMT, num_frames_B, max_frames), None, None)
            states_BSE = states_BSE[:, :num_states]
        else:
            frame_mask_BT = _mask(num_frames_B, longest)
            key_mask_BS = _mask(num_states_B, num_states)
            states_BSE = self._encode(log_mel_BMT, None if uniform else frame_mask_BT, None if uniform else key_mask_BS)
        return states_BSE * _mask(num_states_B, states_BSE.shape[1])[:, :, None], counts_B

    def _encode(self, log_mel_BMT: Tensor, frame_mask_BT: Tensor | None, key_mask_BS: Tensor | None) -> Tensor:
        whisper = self.whisper
        if frame_mask_BT is not None:
            log_mel_BMT = log_mel_BMT * frame_mask_BT[:, None]
        hidden_BET = F.gelu(whisper.conv1(log_mel_BMT))
        if frame_mask_BT is not None:
            # conv1's bias makes padding non-zero, and conv2 would read it across the clip's end
            hidden_BET = hidden_BET * frame_mask_BT[:, None]
        states_BSE = F.gelu(whisper.conv2(hidden_BET)).transpose(1, 2)
        states_BSE = (states_BSE + whisper.positional_embedding[: states_BSE.shape[1]]).to(states_BSE.dtype)
        attention_mask = None if key_mask_BS is None else key_mask_BS[:, None, None, :]
        for block in whisper.blocks:
            states_BSE = states_BSE + _attend(block.attn, block.attn_ln(states_BSE), attention_mask)
            states_BSE = states_BSE + block.mlp(block.mlp_ln(states_BSE))
        encoded: Tensor = whisper.ln_post(states_BSE)
        return encoded


def _attend(attention: Any, states_BSE: Tensor, attention_mask: Tensor | None) -> Tensor:
    batch, length, width = states_BSE.shape
    heads = (batch, length, attention.n_head, width // attention.n_head)
    query, key, value = (
        projection(states_BSE).view(heads).transpose(1, 2) for projection in (attention.query, attention.key, attention.value)
    )
    mixed_BHSD = F.scaled_dot_product_attention(query, key, value, attn_mask=attention_mask)
    mixed: Tensor = attention.out(mixed_BHSD.transpose(1, 2).reshape(batch, length, width))
    return mixed


def _mask(lengths_B: Tensor, longest: int) -> Tensor:
    """A mask (B, longest), True if a position lies inside its row's length."""
    return torch.arange(longest, device=lengths_B.device)[None, :] < lengths_B[:, None]


def _fill_with_silence(log_mel_BMT: Tensor, num_frames_B: Tensor, total_frames: int) -> Tensor:
    """Pad to `total_frames` with each clip's own floor, the value that Whisper's clamp gives to silence."""
    batch, num_mels, frames = log_mel_BMT.shape
    inside_BT = _mask(num_frames_B, frames)
    loudest_B = log_mel_BMT.masked_fill(~inside_BT[:, None], -torch.inf).amax(dim=(1, 2))
    filled = (loudest_B - _LOG_MEL_RANGE)[:, None, None].expand(batch, num_mels, total_frames).clone()
    filled[:, :, :frames] = torch.where(inside_BT[:, None], log_mel_BMT, filled[:, :, :frames])
    return filled


class WhisperWeights(nn.Module):
    """The modules of openai-whisper's `AudioEncoder`, by its names, without openai-whisper.

    Its layer norms compute in float32 and round their output, as Whisper's own do.
    """

    def __init__(self, dims: EncoderDims, *, num_heads: int, num_layers: int) -> None:
        super().__init__()
        width = dims.width
        self.conv1 = nn.Conv1d(dims.num_mels, width, kernel_size=3, padding=1)
        self.conv2 = nn.Conv1d(width, width, kernel_size=3, stride=2, padding=1)
        self.positional_embedding = nn.Parameter(torch.zeros(dims.max_states, width))
        self.blocks = nn.ModuleList(_Block(width, num_heads) for _ in range(num_layers))
        self.ln_post = _RoundedLayerNorm(width)


class _RoundedLayerNorm(nn.LayerNorm):
    def forward(self, states_BSE: Tensor) -> Tensor:
        # float() of the weights is for a model that was cast as a whole, by its .half() or .to(dtype)
        weight_E, bias_E = self.weight.float(), self.bias.float()
        return F.layer_norm(states_BSE.float(), self.normalized_shape, weight_E, bias_E, self.eps).to(states_BSE.dtype)


class _Block(nn.Module):
    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.attn = _Attention(width, num_heads)
        self.attn_ln = _RoundedLayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))
        self.mlp_ln = _RoundedLayerNorm(width)


class _Attention(nn.Module):
    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.n_head = num_heads
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width, bias=False)
        self.value = nn.Linear(width, width)
        self.out = nn.Linear(width, width)
