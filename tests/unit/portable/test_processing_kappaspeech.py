"""Recordings in every form that a processor takes, and what it refuses."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
import torch
from whisper.audio import log_mel_spectrogram

from kappaspeech.portable.processing_kappaspeech import KappaSpeechProcessor
from kappaspeech.speech.samples import SAMPLE_RATE_HZ, log_mel
from kappaspeech.trained.whole import whisper_filters


@pytest.fixture(scope="module")
def processor(home):
    from transformers import AutoTokenizer

    return KappaSpeechProcessor(AutoTokenizer.from_pretrained(home / "llm"), whisper_filters(80), 30.0)


def speech(seconds: float = 1.0, rate_hz: int = SAMPLE_RATE_HZ, seed: int = 0) -> np.ndarray:
    return (0.1 * np.random.default_rng(seed).standard_normal(round(seconds * rate_hz))).astype(np.float32)


def test_log_mels_are_whispers_bit_by_bit(processor):
    clips = [speech(1.0), speech(0.5, seed=1)]
    inputs = processor(clips, sampling_rate=SAMPLE_RATE_HZ)
    assert inputs["num_frames"].tolist() == [100, 50]
    for row, clip in enumerate(clips):
        expected = log_mel_spectrogram(torch.from_numpy(clip), 80)
        assert torch.equal(inputs["input_features"][row, :, : expected.shape[1]], expected)
        assert np.array_equal(log_mel(clip, 80), expected.numpy())
    assert not inputs["input_features"][1, :, 50:].any()


def test_a_path_an_array_and_a_row_of_a_dataset_are_the_same(processor, tmp_path):
    clip = speech()
    soundfile.write(tmp_path / "a.wav", clip, SAMPLE_RATE_HZ, subtype="FLOAT")
    forms = [(clip, SAMPLE_RATE_HZ), (str(tmp_path / "a.wav"), None), ({"array": clip, "sampling_rate": SAMPLE_RATE_HZ}, None)]
    forms += [(np.stack([clip, clip], axis=1), SAMPLE_RATE_HZ)]
    # in the form of torchcodec's, which isn't among the packages of the tests
    decoded = SimpleNamespace(data=torch.from_numpy(np.stack([clip, clip])), sample_rate=SAMPLE_RATE_HZ)
    forms += [(SimpleNamespace(get_all_samples=lambda: decoded), None)]
    expected = processor(clip, sampling_rate=SAMPLE_RATE_HZ)["input_features"]
    for audio, rate in forms:
        torch.testing.assert_close(processor(audio, sampling_rate=rate)["input_features"], expected, atol=1e-6, rtol=0)


def test_another_rate_is_resampled_and_refused_without_soxr(processor, monkeypatch):
    clip = speech(1.0, rate_hz=48_000)
    assert processor(clip, sampling_rate=48_000)["num_frames"].tolist() == [100]
    monkeypatch.setitem(sys.modules, "soxr", None)
    with pytest.raises(ValueError, match="48000 Hz, and without soxr"):
        processor(clip, sampling_rate=48_000)


@pytest.mark.parametrize(
    ("audio", "rate_hz", "why"),
    [
        (speech(), None, "give sampling_rate"),
        (speech(31.0), SAMPLE_RATE_HZ, "31.00 s long"),
        (speech(0.01), SAMPLE_RATE_HZ, "0.01 s long"),
        (np.zeros(16_000, dtype=np.float32), SAMPLE_RATE_HZ, "every sample is zero"),
        (np.full(16_000, np.nan), SAMPLE_RATE_HZ, "NaN"),
        (3000 * speech(), SAMPLE_RATE_HZ, "divide them by 32768"),
        (np.ones(16_000, dtype=np.int16), SAMPLE_RATE_HZ, "int16; wanted are floats"),
    ],
)
def test_what_can_not_be_speech_is_refused(processor, audio, rate_hz, why):
    with pytest.raises(ValueError, match=why):
        processor(audio, sampling_rate=rate_hz)


def test_a_text_ends_at_its_end(processor):
    tokenizer = processor.tokenizer
    ids = tokenizer("the red lamp", add_special_tokens=False)["input_ids"]
    end = tokenizer.eos_token_id
    assert processor.texts(torch.tensor([[*ids, end, end], [*ids, end, ids[0]]])) == ["the red lamp"] * 2
