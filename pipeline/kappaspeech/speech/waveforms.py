"""Waveforms: channels into one, what is no speech to be trusted, and Whisper's log-mel spectrogram.

An export holds this file as it is.

M mel channels · Q bins of the Fourier transform · T samples
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from torch import Tensor

SAMPLE_RATE_HZ = 16_000
NUM_BINS = 201
_HOP = 160
# Two hops: Whisper's second convolution halves the frames, so their number is kept even.
_FRAME_PAIR = 2 * _HOP
SHORTEST_SECONDS = 0.1
# Lossy formats overshoot 1 a little; integers that were written as floats reach thousands.
_LARGEST_PEAK = 2.0
_CANCELLED = 0.5


def mix(waveform: NDArray[np.float32]) -> NDArray[np.float32]:
    """(T, channels) → (T,): the mean, but if channels cancel each other out (one is inverted) the loudest."""
    num_channels = waveform.shape[1]
    if num_channels == 1:
        return waveform[:, 0]
    mono: NDArray[np.float32] = waveform.mean(axis=1, dtype=np.float32)
    powers = np.square(waveform).mean(axis=0, dtype=np.float64)
    # channels that have nothing to do with each other leave 1/channels of their power; less is left if some cancel
    if np.square(mono).mean(dtype=np.float64) < _CANCELLED * powers.mean() / num_channels:
        return np.ascontiguousarray(waveform[:, int(powers.argmax())])
    return mono


def find_fault(mono: NDArray[np.float32]) -> tuple[str, str] | None:
    """The reason that a waveform (T,) can't be speech, as a word that can be counted and a detail; None if it can."""
    if not np.isfinite(mono).all():
        return "decode", "NaN or Inf in the waveform"
    if not mono.any():
        return "silent", "every sample is zero"
    if (peak := float(np.abs(mono).max())) > _LARGEST_PEAK:
        return "scale", f"samples reach {peak:.6g}, and floats are to lie between -1 and 1: divide them by 32768?"
    return None


def log_mel(waveform: NDArray[np.float32], filters_MQ: Tensor) -> NDArray[np.float32]:
    """Whisper's log-mel spectrogram of one clip, (M, frames), without padding to 30 s: openai-whisper's `log_mel_spectrogram`.

    Always of a single clip: Whisper clamps relative to the loudest cell of its whole input, so features of a batch would
    depend on its neighbours. The waveform is filled with silence to a whole number of frame pairs.
    """
    import torch

    filled = torch.from_numpy(np.pad(waveform, (0, -len(waveform) % _FRAME_PAIR)))
    size = 2 * (NUM_BINS - 1)
    spectrum = torch.stft(filled, size, _HOP, window=torch.hann_window(size), return_complex=True)
    decades = torch.clamp(filters_MQ @ spectrum[..., :-1].abs() ** 2, min=1e-10).log10()
    features: NDArray[np.float32] = ((torch.maximum(decades, decades.max() - 8.0) + 4.0) / 4.0).numpy()
    return features
