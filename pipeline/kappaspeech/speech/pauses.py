"""Pauses of a long recording, by its energy, in which it may be cut. Pure.

T samples · F frames
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

FRAME_SAMPLES = 320
# as long as a pause between words, longer than the closure of a plosive
_SHORTEST_PAUSE_FRAMES = 10
# a pause is cut no better for being longer
_LONGEST_PAUSE_FRAMES = 50
# how far from the noise between words, towards the loud parts of speech, a frame is still silent
_SILENT_SHARE = 0.3
_NOISE_QUANTILE, _SPEECH_QUANTILE = 0.05, 0.9
# less than this between the two, and nothing tells speech from silence
_LEAST_RANGE_DB = 6.0
_FLOOR_POWER = 1e-10
# Between one step of 16 bits, which Opus leaves of zeros, and two: no speech lies so low.
_SILENT_PEAK = 1.5 * 2**-15


def frame_decibels(waveform_T: NDArray[np.float32]) -> NDArray[np.float64]:
    """The mean power of each whole frame, (F,), in dB of full scale, and never below what 16 bits hold."""
    frames = waveform_T[: len(waveform_T) // FRAME_SAMPLES * FRAME_SAMPLES].reshape(-1, FRAME_SAMPLES)
    power_F = np.einsum("fs,fs->f", frames, frames, dtype=np.float64) / FRAME_SAMPLES
    return np.asarray(10 * np.log10(np.maximum(power_F, _FLOOR_POWER)))


def is_silence(waveform_T: NDArray[np.float32]) -> bool:
    """Return whether a recorder was muted: no sample is beyond what codecs and dither make of zeros, 87 dB below full scale."""
    return not len(waveform_T) or bool(max(waveform_T.max(), -waveform_T.min()) <= _SILENT_PEAK)


def find_cut(decibels_F: NDArray[np.float64]) -> int:
    """The frame before which to cut what is too long: the middle of the longest pause of the last third, if there is none
    of the two last ones, else the middle of its quietest moment."""
    num_frames = len(decibels_F)
    noise, speech = np.quantile(decibels_F, [_NOISE_QUANTILE, _SPEECH_QUANTILE])
    if speech - noise >= _LEAST_RANGE_DB:
        is_silent_F = decibels_F < noise + _SILENT_SHARE * (speech - noise)
        for first in (num_frames * 2 // 3, num_frames // 3):
            pauses = _runs(is_silent_F, first)
            if pauses:
                begin, end = max(pauses, key=lambda run: (min(run[1] - run[0], _LONGEST_PAUSE_FRAMES), run[0]))
                return (begin + end) // 2
    return _quietest(decibels_F, num_frames * 2 // 3)


def _runs(is_silent_F: NDArray[np.bool_], first: int) -> list[tuple[int, int]]:
    """The pauses from frame `first` on, as far as they go within."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], is_silent_F[first:], [False]]).astype(np.int8)))
    runs = (edges.reshape(-1, 2) + first).tolist()
    return [(begin, end) for begin, end in runs if end - begin >= _SHORTEST_PAUSE_FRAMES]


def _quietest(decibels_F: NDArray[np.float64], first: int) -> int:
    """The middle of the quietest stretch as long as a pause."""
    power_F = 10 ** (decibels_F[first:] / 10)
    width = min(_SHORTEST_PAUSE_FRAMES, len(power_F))
    sums = np.convolve(power_F, np.ones(width), mode="valid")
    return first + int(sums.argmin()) + width // 2
