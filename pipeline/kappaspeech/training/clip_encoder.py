"""A micro-batch's encoder states, from the encoder or from the cache of an earlier epoch."""

from __future__ import annotations

import torch
from torch import Tensor

from kappaspeech.model.encoder import SpeechEncoder
from kappaspeech.speech.batches import SpeechBatch
from kappaspeech.speech.feature_cache import CachedClip, FeatureCache, to_bits


class ClipEncoder:
    """An encoder of micro-batches on `device`, which hands `cache` the states that it keeps.

    On a CPU each clip is encoded alone. Its states then don't depend, not even in their last bit, on the other clips of its
    batch, and a clip from the cache gives the losses that encoding it again would give. On a GPU those clips of a micro-batch
    that aren't cached are encoded together, with one wait for them if they are to be kept. There a clip's states depend on the
    other clips, in the last bits of the encoder's dtype, and losses with the cache equal those without it to that precision.
    """

    def __init__(self, encoder: SpeechEncoder, device: torch.device, *, cache: FeatureCache | None = None) -> None:
        self._encoder = encoder
        self._device = device
        self._cache = cache
        self._encodes_together = device.type != "cpu"

    def encode(self, batch: SpeechBatch) -> tuple[Tensor, Tensor]:
        """States (B, S, E) on the device, zero past their counts (B,), which stay on the host."""
        fresh = [row for row, cached in enumerate(batch.states) if cached is None]
        if self._encodes_together and len(fresh) == len(batch.audio_input):
            states_BSE, num_states_B = self._encoder(batch.audio_input.to(self._device), batch.num_frames)
            self._keep(batch, fresh, states_BSE)
            return states_BSE, num_states_B
        rows = [cached if cached is None else cached.to(self._device) for cached in batch.states]
        for part in [fresh] if self._encodes_together and fresh else [[row] for row in fresh]:
            states_FSE, _ = self._encoder(batch.audio_input[part].to(self._device), batch.num_frames[part])
            for states_SE, row in zip(states_FSE, part, strict=True):
                rows[row] = states_SE[: self._count_states(batch, row)]
            self._keep(batch, part, states_FSE)
        present = [states_SE for states_SE in rows if states_SE is not None]
        num_states_B = torch.tensor([len(states_SE) for states_SE in present])
        return torch.nn.utils.rnn.pad_sequence(present, batch_first=True), num_states_B

    def _keep(self, batch: SpeechBatch, rows: list[int], states_FSE: Tensor) -> None:
        """Hand the cache those of these rows' states that it is to keep."""
        if self._cache is None or all(batch.to_cache[row] is None for row in rows):
            return
        # all at once: each copy waits for the device
        host_FSE = states_FSE.cpu()
        for states_SE, row in zip(host_FSE, rows, strict=True):
            if (target := batch.to_cache[row]) is not None:
                bits, num_frames = to_bits(states_SE[: self._count_states(batch, row)]), int(batch.num_frames[row])
                self._cache.keep(target.name, CachedClip(bits, num_frames, target.transcript, target.shard_stamp))

    def _count_states(self, batch: SpeechBatch, row: int) -> int:
        return self._encoder.dims.count_states(int(batch.num_frames[row]))
