"""A micro-batch's encoder states, from the encoder or from where an earlier epoch left them."""

from __future__ import annotations

import torch
from torch import Tensor

from pipeline.model.encoder import FrozenWhisperEncoder
from pipeline.speech.batches import SpeechBatch
from pipeline.speech.feature_cache import CachedClip, FeatureCache, to_bits


class ClipEncoder:
    """Encodes micro-batches on `device`, and keeps what `cache` is to keep.

    On a CPU, and wherever there is a cache, each clip is encoded alone: its states then don't depend, not even in their last
    bit, on what it is batched with, so that a clip from the cache gives the losses that encoding it again would give.
    """

    def __init__(self, encoder: FrozenWhisperEncoder, device: torch.device, *, cache: FeatureCache | None = None) -> None:
        self._encoder = encoder
        self._device = device
        self._cache = cache

    def encode(self, batch: SpeechBatch) -> tuple[Tensor, Tensor]:
        """States (B, S, E), zero past their counts (B,), on the device."""
        log_mel, num_frames = batch.log_mel.to(self._device), batch.num_frames.to(self._device)
        if self._cache is None and self._device.type != "cpu":
            states_BSE, num_states_B = self._encoder(log_mel, num_frames)
            return states_BSE, num_states_B
        rows = [self._row(batch, row, log_mel[row : row + 1], num_frames[row : row + 1]) for row in range(len(log_mel))]
        num_states_B = torch.tensor([len(states_SE) for states_SE in rows], device=self._device)
        return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True), num_states_B

    def _row(self, batch: SpeechBatch, row: int, log_mel_1MT: Tensor, num_frames_1: Tensor) -> Tensor:
        cached = batch.states[row]
        if cached is not None:
            return cached.to(self._device)
        states_SE: Tensor = self._encoder(log_mel_1MT, num_frames_1)[0][0]
        target = batch.to_cache[row]
        if self._cache is not None and target is not None:
            self._cache.keep(target.name, CachedClip(to_bits(states_SE), int(num_frames_1), target.transcript))
        return states_SE
