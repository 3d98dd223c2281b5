"""Long recordings are cut between words, wherever the pauses lie and whatever noise is in them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from kappaspeech.speech.pauses import FRAME_SAMPLES, find_cut, frame_decibels, is_silence
from kappaspeech.speech.samples import SAMPLE_RATE_HZ, cut_at_pauses, read_recording

RATE = SAMPLE_RATE_HZ
SPEECH = Path(__file__).parents[4] / "shared/speech"


def joined(words: list[np.ndarray], pauses: list[float], *, noise: float) -> tuple[np.ndarray, list[tuple[int, int]]]:
    """Words with these pauses behind them, in noise of that amplitude; and the pauses as (begin, end) in samples."""
    parts, places, length = [], [], 0
    for word, seconds in zip(words, pauses, strict=True):
        places.append((length + len(word), length + len(word) + int(seconds * RATE)))
        parts += [word, np.zeros(int(seconds * RATE))]
        length = places[-1][1]
    waveform = np.concatenate(parts)
    return (waveform + np.random.default_rng(0).normal(0, noise, length)).astype(np.float32), places


def word(seconds: float, *, soft: float = 0.0) -> np.ndarray:
    """A loud tone, of which the middle may be soft for so many seconds, as in a vowel that is hardly spoken."""
    tone = 0.3 * np.sin(2 * np.pi * 180 * np.arange(int(seconds * RATE)) / RATE)
    middle, half = len(tone) // 2, int(soft * RATE / 2)
    tone[middle - half : middle + half] *= 0.03
    return tone


def cuts(waveform: np.ndarray, longest_seconds: float) -> list[int]:
    pieces = cut_at_pauses(waveform, longest_seconds=longest_seconds)
    np.testing.assert_array_equal(np.concatenate(pieces), waveform)
    assert max(map(len, pieces)) <= longest_seconds * RATE
    return np.cumsum([len(piece) for piece in pieces])[:-1].tolist()


def inside(cut: int, places: list[tuple[int, int]]) -> bool:
    return any(begin < cut < end for begin, end in places)


@pytest.mark.parametrize("shift", range(0, 3_200, 400))
def test_a_short_pause_is_found_wherever_it_begins_and_a_soft_word_is_none(shift):
    words = [word(0.4 + shift / RATE), *[word(0.97, soft=0.5)] * 30]
    waveform, places = joined(words, [0.24] * 31, noise=0.0007)
    found = cuts(waveform, 7.0)
    assert len(found) > 4
    assert all(inside(cut, places) for cut in found)


def test_the_longest_pause_is_taken():
    pauses = [0.3] * 30
    pauses[16] = 0.7
    waveform, places = joined([word(0.9)] * 30, pauses, noise=0.001)
    (cut, *_) = cuts(waveform, 24.0)
    assert abs(cut - sum(places[16]) / 2) <= 2 * FRAME_SAMPLES


def test_a_pause_before_the_last_third_is_better_than_none_in_it():
    waveform, places = joined([word(4.0), word(8.0)], [0.4, 0.0], noise=0.001)
    assert inside(cuts(waveform, 7.0)[0], places)


def test_what_has_no_pause_is_cut_at_its_quietest_and_silence_anywhere():
    tone = word(20.0).astype(np.float32)
    tone[6 * RATE : 6 * RATE + 4_000] *= 0.7
    assert 6 * RATE < cuts(tone, 7.0)[0] < 6 * RATE + 4_000
    assert len(cuts(np.zeros(20 * RATE, dtype=np.float32), 7.0)) >= 2


def test_a_cut_leaves_both_sides_something_however_short_the_longest_piece_is():
    for seed in range(20):
        decibels = np.random.default_rng(seed).uniform(-90, 0, 50)
        assert 0 < find_cut(decibels) < 50


def test_power_is_of_full_scale_and_of_whole_frames():
    assert frame_decibels(np.full(FRAME_SAMPLES * 2 + 5, 0.1, dtype=np.float32)) == pytest.approx([-20, -20], abs=1e-4)


@pytest.mark.skipif(not SPEECH.is_dir(), reason=f"the recordings of real speech are not beside this repository ({SPEECH})")
@pytest.mark.parametrize("language", ["de", "en"])
def test_real_sentences_that_were_put_together_are_cut_where_they_were(language):
    found = [trimmed(read_recording(path)) for path in sorted((SPEECH / language).glob("*.opus"))[:40]]
    # shorter than a third of the longest piece, so that there always is a place
    sentences = [sentence for sentence in found if len(sentence) < 7 * RATE]
    waveform, places = joined(sentences, [0.8] * len(sentences), noise=0.0005)
    places_of_cuts = cuts(waveform, 24.0)
    assert len(places_of_cuts) >= len(waveform) / (24 * RATE) - 1 > 2
    assert all(inside(cut, places) for cut in places_of_cuts)


def trimmed(waveform: np.ndarray) -> np.ndarray:
    """A sentence without the silence around it."""
    loud = np.flatnonzero(np.abs(waveform) > 0.05 * np.abs(waveform).max())
    return waveform[loud[0] : loud[-1] + 1]


def test_silence_is_what_dither_makes_of_zeros_and_no_quiet_sound_is():
    step, second = 2**-15, np.zeros(SAMPLE_RATE_HZ, dtype=np.float32)
    dithered = np.random.default_rng(0).integers(-1, 2, SAMPLE_RATE_HZ).astype(np.float32) * step
    assert is_silence(second)
    assert is_silence(second[:0])
    assert is_silence(dithered)
    for sample in (2 * step, -2 * step, np.nan):
        heard = second.copy()
        heard[7] = sample
        assert not is_silence(heard)
