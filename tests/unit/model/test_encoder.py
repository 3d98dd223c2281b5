"""The frozen encoder against openai-whisper's own, and at any length."""

from __future__ import annotations

import pytest
import torch
import whisper

from kappaspeech.errors import CheckpointError
from kappaspeech.model.encoder import choose_encoder_dtype, load_encoder


@pytest.fixture(scope="module")
def encoder(home):
    return load_encoder(str(home / "whisper.pt"))


def mel(frames: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(80, frames, generator=torch.Generator().manual_seed(seed))


def batch_of(clips: list[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    counts = torch.tensor([clip.shape[1] for clip in clips])
    batch = torch.zeros(len(clips), 80, int(counts.max()))
    for row, clip in enumerate(clips):
        batch[row, :, : clip.shape[1]] = clip
    return batch, counts


def test_at_thirty_seconds_it_is_whispers_encoder(home, encoder):
    clip = mel(3000)
    with torch.no_grad():
        expected = whisper.load_model(str(home / "whisper.pt"), device="cpu").encoder(clip[None])
    states, counts = encoder(clip[None], torch.tensor([3000]))
    assert counts.tolist() == [1500]
    torch.testing.assert_close(states, expected, atol=1e-5, rtol=1e-5)


def test_at_thirty_seconds_both_modes_agree(home, encoder):
    padded = load_encoder(str(home / "whisper.pt"), pad_to_30s=True)
    batch = torch.stack([mel(3000, 0), mel(3000, 1)])
    counts = torch.tensor([3000, 3000])
    torch.testing.assert_close(padded(batch, counts)[0], encoder(batch, counts)[0], atol=1e-5, rtol=0)


@pytest.mark.parametrize("pad_to_30s", [False, True])
def test_in_bfloat16_it_hears_nearly_the_same(home, pad_to_30s):
    path = str(home / "whisper.pt")
    exact, rounded = (load_encoder(path, pad_to_30s=pad_to_30s, dtype=dtype) for dtype in (torch.float32, torch.bfloat16))
    batch, counts = batch_of([mel(400, 0), mel(120, 1)])
    expected, states = exact(batch, counts)[0], rounded(batch, counts)[0]
    assert states.dtype == torch.bfloat16
    # states are normalised to about 1, and bfloat16 keeps 8 bits
    torch.testing.assert_close(states.float(), expected, atol=0.05, rtol=0)


def test_its_dtype_is_the_llms_where_the_machine_is_fast_in_it_unless_one_is_asked_for():
    def choose(wanted, llm_dtype, is_fast):
        return choose_encoder_dtype(wanted, llm_dtype=llm_dtype, bfloat16_is_fast=is_fast)

    assert choose("auto", "bfloat16", True) == "bfloat16"
    assert {choose("auto", "bfloat16", False), choose("auto", "float32", True)} == {"float32"}
    assert choose("bfloat16", "float32", False) == "bfloat16"
    assert choose("float32", "bfloat16", True) == "float32"


def test_a_clip_is_encoded_alike_whatever_it_is_batched_with(encoder):
    clips = [mel(400, 0), mel(120, 1), mel(36, 2)]
    together, counts = encoder(*batch_of(clips))
    for row, clip in enumerate(clips):
        alone, _ = encoder(clip[None], torch.tensor([clip.shape[1]]))
        assert counts[row] == clip.shape[1] // 2
        torch.testing.assert_close(together[row, : counts[row]], alone[0], atol=1e-5, rtol=1e-5)
        assert not together[row, counts[row] :].any()


def test_what_lies_past_a_clips_end_is_never_read(encoder):
    batch, counts = batch_of([mel(400, 0), mel(120, 1)])
    clean, _ = encoder(batch, counts)
    batch[1, :, 120:] = 7.0
    dirty, _ = encoder(batch, counts)
    torch.testing.assert_close(clean, dirty, atol=1e-6, rtol=0)


def test_padded_to_thirty_seconds_it_hears_silence_after_the_clip(home):
    padded = load_encoder(str(home / "whisper.pt"), pad_to_30s=True)
    waveform = torch.sin(torch.arange(32_000) * 0.2) * 0.3
    clip = whisper.log_mel_spectrogram(waveform, 80)
    whole = whisper.log_mel_spectrogram(torch.nn.functional.pad(waveform, (0, 480_000 - 32_000)), 80)
    with torch.no_grad():
        expected = whisper.load_model(str(home / "whisper.pt"), device="cpu").encoder(whole[None])[:, :100]
    states, counts = padded(clip[None], torch.tensor([200]))
    assert counts.tolist() == [100]
    # the frame at the clip's end sees the padding through the window of the transform
    torch.testing.assert_close(states[:, :95], expected[:, :95], atol=0.05, rtol=0)


def test_it_stays_frozen_and_in_eval_mode(encoder):
    assert not encoder.train().training
    assert not any(parameter.requires_grad for parameter in encoder.parameters())


def test_a_clip_past_thirty_seconds_is_refused(encoder):
    with pytest.raises(ValueError, match="3002"):
        encoder(torch.zeros(1, 80, 3002), torch.tensor([3002]))


def test_what_is_no_whisper_checkpoint_is_named(tmp_path):
    (tmp_path / "junk.pt").write_bytes(b"junk")
    for path in (tmp_path / "junk.pt", tmp_path / "missing.pt"):
        with pytest.raises(CheckpointError, match=path.name):
            load_encoder(str(path))
