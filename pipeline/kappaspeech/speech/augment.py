"""Seeded changes to training samples: speed perturbation and SpecAugment."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from kappaspeech.speech.samples import SAMPLE_RATE_HZ


@dataclass(frozen=True)
class Augmentation:
    """`speed_factors` to choose from, evenly; `freq_masks` of up to `freq_width` channels and `time_masks` of up to `time_width`
    frames, each at most `max_time_fraction` of the clip. Empty and 0 leave samples as they are."""

    speed_factors: tuple[float, ...] = ()
    freq_masks: int = 0
    freq_width: int = 27
    time_masks: int = 0
    time_width: int = 100
    max_time_fraction: float = 0.2

    @property
    def longest_factor(self) -> float:
        """The largest factor by which augmentation may lengthen a sample."""
        return 1 / min(self.speed_factors, default=1.0)


def generator(*counter: int) -> np.random.Generator:
    """Random numbers of one sample at one place of the training, whichever process draws them."""
    return np.random.Generator(np.random.Philox(np.random.SeedSequence([number & (2**64 - 1) for number in counter])))


def change_speed(waveform: NDArray[np.float32], factors: Sequence[float], random: np.random.Generator) -> NDArray[np.float32]:
    """Play `waveform` faster by one of `factors`, by resampling: pitch moves too (Ko et al., Interspeech 2015)."""
    import soxr

    factor = float(random.choice(np.asarray(factors)))
    if factor == 1:
        return waveform
    return np.asarray(soxr.resample(waveform, SAMPLE_RATE_HZ * factor, SAMPLE_RATE_HZ), dtype=np.float32)


def mask_spectrogram(log_mel: NDArray[np.float32], options: Augmentation, random: np.random.Generator) -> NDArray[np.float32]:
    """Blank bands and stretches of a (M, T) spectrogram to its mean, without warping (Park et al., Interspeech 2019)."""
    if not options.freq_masks and not options.time_masks:
        return log_mel
    masked, mean = log_mel.copy(), log_mel.mean()
    num_mels, num_frames = log_mel.shape
    for _ in range(options.freq_masks):
        width = int(random.integers(min(options.freq_width, num_mels) + 1))
        begin = int(random.integers(num_mels - width + 1))
        masked[begin : begin + width] = mean
    for _ in range(options.time_masks):
        width = int(random.integers(min(options.time_width, int(options.max_time_fraction * num_frames)) + 1))
        begin = int(random.integers(num_frames - width + 1))
        masked[:, begin : begin + width] = mean
    return masked
