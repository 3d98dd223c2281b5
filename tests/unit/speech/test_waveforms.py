"""Channels into one, and what is no speech."""

from __future__ import annotations

import numpy as np

from kappaspeech.speech.waveforms import find_fault, mix


def test_channels_are_averaged_and_of_those_that_cancel_the_loudest_is_taken():
    left = np.sin(np.arange(1000, dtype=np.float32))
    assert np.allclose(mix(np.stack([left, 0.5 * left], axis=1)), 0.75 * left)
    assert np.array_equal(mix(np.stack([0.9 * left, -left], axis=1)), -left)


def test_a_fault_has_a_word_and_a_sound_waveform_none():
    sound = np.sin(np.arange(1000, dtype=np.float32))
    assert find_fault(sound) is None
    faults = [find_fault(wrong) for wrong in (np.nan * sound, 0 * sound, 1000 * sound)]
    assert [fault and fault[0] for fault in faults] == ["decode", "silent", "scale"]
