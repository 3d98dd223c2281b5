"""The modules that hold Whisper's weights without openai-whisper."""

from __future__ import annotations

import pytest
import torch

from kappaspeech.model.encoder import load_encoder
from kappaspeech.model.masked_whisper import EncoderDims, MaskedWhisperEncoder, WhisperWeights


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("pad_to_30s", [False, True])
def test_states_are_openai_whispers_bit_by_bit(home, dtype, pad_to_30s):
    theirs = load_encoder(str(home / "whisper.pt"), dtype=dtype, pad_to_30s=pad_to_30s)
    weights = WhisperWeights(theirs.dims, num_heads=theirs.whisper.blocks[0].attn.n_head, num_layers=theirs.num_layers)
    weights.load_state_dict(theirs.whisper.state_dict(), assign=True)
    ours = MaskedWhisperEncoder(weights, theirs.dims, pad_to_30s=pad_to_30s)
    counts = torch.tensor([300, 120])
    mels = torch.randn(2, 80, 300, generator=torch.Generator().manual_seed(0))
    mels[1, :, 120:] = 0
    (expected, num_expected), (states, num_states) = theirs(mels, counts), ours(mels, counts)
    assert states.dtype == dtype
    assert torch.equal(states, expected)
    assert torch.equal(num_states, num_expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_an_encoder_that_was_cast_as_a_whole_computes(dtype):
    torch.manual_seed(0)
    dims = EncoderDims(num_mels=8, width=16, max_states=50)
    encoder = MaskedWhisperEncoder(WhisperWeights(dims, num_heads=2, num_layers=1), dims)
    mels, counts = torch.randn(2, 8, 20), torch.tensor([20, 11])
    expected, _ = encoder(mels, counts)
    states, _ = encoder.to(dtype)(mels, counts)
    assert states.dtype == dtype
    torch.testing.assert_close(states.float(), expected, atol=0.05, rtol=0.05)
