"""Bytes to waveforms to features."""

from __future__ import annotations

import io

import numpy as np
import pytest
import soundfile

from kappaspeech.errors import DataError
from kappaspeech.speech.samples import BadSampleError, check_whole, cut_at_pauses, decode, encoder_input, log_mel, read_recording


def encode(waveform: np.ndarray, *, rate_hz: int = 16_000, container: str = "FLAC") -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, waveform, rate_hz, format=container)
    return buffer.getvalue()


def tone(seconds: float, *, rate_hz: int = 16_000, hertz: float = 440.0) -> np.ndarray:
    return (0.4 * np.sin(2 * np.pi * hertz * np.arange(int(seconds * rate_hz)) / rate_hz)).astype(np.float32)


@pytest.mark.parametrize("container", ["FLAC", "WAV", "OGG", "MP3"])
def test_a_tone_keeps_its_pitch_through_every_container_rate_and_channel(container):
    stereo = np.stack([tone(1.0, rate_hz=44_100)] * 2, axis=1)
    waveform = decode(encode(stereo, rate_hz=44_100, container=container))
    assert waveform.dtype == np.float32
    assert len(waveform) == pytest.approx(16_000, abs=1_200)
    spectrum = np.abs(np.fft.rfft(waveform[2_000:10_000]))
    assert np.fft.rfftfreq(8_000, 1 / 16_000)[spectrum.argmax()] == pytest.approx(440, abs=3)


@pytest.mark.parametrize(
    ("content", "expected_seconds", "cause"),
    [
        (b"this is no audio", None, "decode"),
        (b"", None, "decode"),
        (encode(np.zeros(16_000, dtype=np.float32)), None, "silent"),
        (encode(tone(0.05)), None, "short"),
        (encode(tone(1.0)), 2.0, "truncated"),
    ],
)
def test_what_cannot_be_used_has_a_cause(content, expected_seconds, cause):
    with pytest.raises(BadSampleError) as caught:
        decode(content, expected_seconds=expected_seconds)
    assert caught.value.cause == cause


def test_a_cut_flac_is_never_taken_for_a_whole_one():
    whole = encode(np.random.default_rng(0).normal(0, 0.1, 32_000).astype(np.float32))
    with pytest.raises(BadSampleError):
        decode(whole[: len(whole) // 2], expected_seconds=2.0)


@pytest.mark.parametrize("other", [-1.0, -0.8, -0.5])
def test_channels_that_cancel_each_other_out_are_not_averaged(other):
    stereo = np.stack([tone(1.0), other * tone(1.0)], axis=1)
    np.testing.assert_allclose(decode(encode(stereo, container="WAV")), tone(1.0), atol=1e-4)


@pytest.mark.parametrize("other", [1.0, 0.5, 0.0, None])
def test_channels_that_do_not_are_averaged(other):
    second = np.random.default_rng(0).normal(0, 0.15, 16_000).astype(np.float32) if other is None else other * tone(1.0)
    stereo = np.stack([tone(1.0), second], axis=1)
    np.testing.assert_allclose(decode(encode(stereo, container="WAV")), stereo.mean(axis=1), atol=1e-4)


@pytest.mark.parametrize("rate_hz", [1, 10, 2_000_000_000])
def test_a_rate_that_nobody_records_at_is_refused(rate_hz):
    with pytest.raises(BadSampleError, match="rate: "):
        decode(encode(tone(1.0), rate_hz=rate_hz, container="WAV"))


def test_no_more_is_decoded_than_is_wanted():
    with pytest.raises(BadSampleError, match="length: more than"):
        decode(encode(tone(3.0)), expected_seconds=1.0)
    with pytest.raises(BadSampleError, match="too long: more than"):
        decode(encode(tone(3.0)), longest_seconds=2.0)
    assert len(decode(encode(tone(2.0)), longest_seconds=2.0)) == 32_000


def test_a_long_recording_of_many_channels_is_read_whole():
    waves = np.random.default_rng(0).normal(0, 0.1, (16_000 * 40, 3)).astype(np.float32)
    content = encode(waves, container="WAV")
    np.testing.assert_array_equal(decode(content), soundfile.read(io.BytesIO(content), dtype="float32")[0].mean(axis=1))


def test_what_libsndfile_says_holds_no_address():
    with pytest.raises(BadSampleError) as caught:
        decode(b"this is no audio")
    assert "0x" not in str(caught.value)
    assert "flac, wav, mp3, opus, ogg" in str(caught.value)


def test_a_wav_that_was_cut_is_told_from_one_that_came_through_a_pipe():
    whole = encode(tone(2.0), container="WAV")
    at = whole.index(b"data") + 4
    check_whole(whole)
    for size in (0, 0xFFFFFFFF, 0x7FFFF000):
        check_whole(whole[:at] + size.to_bytes(4, "little") + whole[at + 4 :])
    check_whole(b"OggS")
    with pytest.raises(BadSampleError, match="truncated: "):
        check_whole(whole[: len(whole) // 2])


def test_a_missing_recording_is_named(tmp_path):
    with pytest.raises(DataError, match=r"nowhere\.flac"):
        read_recording(tmp_path / "nowhere.flac")


def test_features_equal_those_of_whisper():
    import torch
    from whisper.audio import log_mel_spectrogram

    waveform = tone(1.0)
    expected = log_mel_spectrogram(torch.from_numpy(waveform), 80).numpy()
    np.testing.assert_allclose(log_mel(waveform, 80), expected, atol=1e-5)


@pytest.mark.parametrize(("num_samples", "num_frames"), [(3_201, 22), (16_000, 100), (16_319, 102), (16_320, 102)])
def test_frames_come_in_pairs_whatever_the_length(num_samples, num_frames):
    assert log_mel(tone(2.0)[:num_samples], 80).shape == (80, num_frames)


def test_a_long_recording_is_cut_in_its_pauses_and_nothing_is_lost():
    speech, pause = tone(11.0), np.zeros(8_000, dtype=np.float32)
    waveform = np.concatenate([speech, speech[:140_000], pause, speech, speech])
    pieces = cut_at_pauses(waveform)
    np.testing.assert_array_equal(np.concatenate(pieces), waveform)
    assert all(len(piece) <= 24 * 16_000 for piece in pieces)
    first_pause = len(speech) + 140_000
    assert first_pause <= len(pieces[0]) <= first_pause + len(pause)


def test_a_piece_may_be_as_long_as_asked_for():
    waveform = tone(2.0)
    # the sixth fifth of a second is the quietest, and the last that 1.2 s have
    waveform[16_000:19_200] = 0
    assert [len(piece) for piece in cut_at_pauses(waveform, longest_seconds=1.2)] == [17_600, 14_400]


def test_an_encoder_reads_mels_or_the_waveform_itself():
    waveform = tone(1.0)
    np.testing.assert_array_equal(encoder_input(waveform, 1), waveform[None])
    np.testing.assert_array_equal(encoder_input(waveform, 80), log_mel(waveform, 80))
