"""The worked example of docs/architecture.md: an encoder that isn't Whisper's, of another rate, if a run uses one."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from kappaspeech.model.adaptor import AdaptorShape
from kappaspeech.model.encoder import EncoderDims
from kappaspeech.model.flops import ClipLengths, speech_cost
from kappaspeech.model.llm import load_llm
from kappaspeech.model.speech_llm import SpeechLLM
from kappaspeech.model.tensor_digests import digest_tensor
from kappaspeech.model.trained import build_adaptor
from kappaspeech.planning.sizes import measure_sizes
from kappaspeech.speech.batches import Features, collate
from kappaspeech.training.clip_encoder import ClipEncoder


class PooledMels(nn.Module):
    """One linear layer on the mean of four frames."""

    def __init__(self) -> None:
        super().__init__()
        self.dims = EncoderDims(num_mels=80, width=16, max_states=750, frames_per_state=4)
        self.pad_to_30s = False
        self.layer = nn.Linear(80, 16)
        self.requires_grad_(False)

    @property
    def dtype(self) -> torch.dtype:
        return self.layer.weight.dtype

    @property
    def weights_per_state(self) -> int:
        return self.layer.weight.numel()

    num_layers = 0

    def digests(self) -> dict[str, str]:
        return {name: digest_tensor(tensor) for name, tensor in self.state_dict().items()}

    def forward(self, log_mel_BMT: Tensor, num_frames_B: Tensor) -> tuple[Tensor, Tensor]:
        counts_B = -(-num_frames_B // self.dims.frames_per_state)
        pooled_BMS = nn.functional.avg_pool1d(log_mel_BMT, self.dims.frames_per_state, ceil_mode=True)
        return self.layer(pooled_BMS.transpose(1, 2)), counts_B


def test_an_encoder_of_another_rate_is_encoded_with_planned_and_counted(home):
    encoder = PooledMels()
    mels = [np.ones((80, frames), np.float32) for frames in (41, 120)]
    batch = collate([Features(str(n), "en", mel, (1, 2)) for n, mel in enumerate(mels)], num_mels=80, keys=["0", "1"])
    states_BSE, counts_B = ClipEncoder(encoder, torch.device("cpu")).encode(batch)
    assert counts_B.tolist() == [11, 30]
    assert states_BSE.shape == (2, 30, 16)
    assert encoder.dims.max_seconds == 30.0
    shape = AdaptorShape(encoder_width=16, llm_width=32, width=32, num_heads=4, stacking=5, dropout=0.0, embedding_std=1.0)
    model = SpeechLLM(build_adaptor(shape, seed=0), load_llm(str(home / "llm"), dtype=torch.float32))
    cost = speech_cost(encoder, model, num_prompt_tokens=0)
    assert cost.num_llm_tokens(ClipLengths(num_frames=120, num_labels=0)) == 6
    assert measure_sizes(encoder, model).seconds_per_audio_token == 0.2
    assert len(encoder.digests()) == 2
