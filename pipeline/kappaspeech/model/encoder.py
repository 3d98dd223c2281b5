"""The frozen speech encoder: Whisper's, from openai-whisper's checkpoint or transformers' folder, or one that reads waveforms."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from kappaspeech.errors import CheckpointError
from kappaspeech.model.masked_whisper import EncoderDims, MaskedWhisperEncoder
from kappaspeech.model.tensor_digests import digest_tensor
from kappaspeech.model.transformers_whisper import is_folder_of_transformers, load_audio_encoder
from kappaspeech.model.waveform_encoder import FrozenWaveformEncoder, check_options, is_waveform_encoder, load_waveform_encoder

__all__ = ["EncoderDims", "FrozenWhisperEncoder", "SpeechEncoder", "choose_encoder_dtype", "load_encoder", "load_whisper"]


class FrozenWhisperEncoder(MaskedWhisperEncoder):
    """openai-whisper's `AudioEncoder` with a key mask, always in eval mode and without gradients."""

    def __init__(self, audio_encoder: nn.Module, dims: EncoderDims, *, pad_to_30s: bool = False) -> None:
        super().__init__(audio_encoder, dims, pad_to_30s=pad_to_30s)
        self.requires_grad_(False)
        self.eval()

    def digests(self) -> dict[str, str]:
        """SHA-256 of each of the encoder's tensors, as it computes with them."""
        return {name: digest_tensor(tensor) for name, tensor in self.state_dict().items()}

    @property
    def weights_per_state(self) -> int:
        """The number of weights that a state is multiplied with: the first convolution's at each of its frames."""
        convolutions = self.dims.frames_per_state * self.whisper.conv1.weight.numel() + self.whisper.conv2.weight.numel()
        return int(convolutions + sum(p.numel() for p in self.whisper.blocks.parameters() if p.ndim == 2))

    @property
    def num_layers(self) -> int:
        return len(self.whisper.blocks)

    def train(self, mode: bool = True) -> FrozenWhisperEncoder:  # noqa: ARG002 - frozen: there is no training mode
        return super().train(False)


SpeechEncoder = FrozenWhisperEncoder | FrozenWaveformEncoder


def choose_encoder_dtype(wanted: str, *, llm_dtype: str, bfloat16_is_fast: bool) -> str:
    """`wanted` (float32, bfloat16), with auto resolved: bfloat16 beside an LLM in it, on a machine that is fast in it."""
    if wanted != "auto":
        return wanted
    return "bfloat16" if llm_dtype == "bfloat16" and bfloat16_is_fast else "float32"


def load_encoder(name_or_path: str, *, pad_to_30s: bool = False, dtype: torch.dtype = torch.float32) -> SpeechEncoder:
    """The encoder of an openai-whisper checkpoint, or of a folder of a Whisper, wav2vec2, HuBERT or WavLM as transformers saves
    it. Raises `CheckpointError`.

    Whisper's layer norms stay float32, whatever `dtype`: Whisper's own forward computes them so and rounds their output.
    """
    if is_folder_of_transformers(name_or_path):
        if is_waveform_encoder(name_or_path):
            encoder = load_waveform_encoder(name_or_path, dtype=dtype)
            check_options(name_or_path, encoder.dims, pad_to_30s=pad_to_30s, num_masks=0)
            return encoder
        audio_encoder, shape = load_audio_encoder(name_or_path)
        dims = EncoderDims(num_mels=shape.num_mels, width=shape.width, max_states=shape.max_states)
    else:
        model = load_whisper(name_or_path, given_as="model.encoder")
        audio_encoder = model.encoder
        dims = EncoderDims(num_mels=model.dims.n_mels, width=model.dims.n_audio_state, max_states=model.dims.n_audio_ctx)
    for module in audio_encoder.modules():
        if not isinstance(module, nn.LayerNorm):
            module._apply(lambda tensor: tensor.to(dtype), recurse=False)
    return FrozenWhisperEncoder(audio_encoder, dims, pad_to_30s=pad_to_30s)


def load_whisper(name_or_path: str, *, given_as: str = "the model") -> Any:
    """A whole openai-whisper model on the CPU, by path to its `.pt` or by official name (which may download it).

    Raises `CheckpointError` if there is no such model or the file isn't one.
    """
    import whisper

    if not Path(name_or_path).is_file() and name_or_path not in whisper.available_models():
        raise CheckpointError(
            f"There is no Whisper checkpoint at {name_or_path!r}, and it is none of openai-whisper's names "
            f"({', '.join(whisper.available_models())}). Give a .pt file or one of these names as {given_as}."
        )
    try:
        return whisper.load_model(name_or_path, device="cpu")
    except Exception as error:  # torch.load raises whatever a torn or foreign file makes it raise
        raise CheckpointError(f"{name_or_path} can't be loaded as an openai-whisper checkpoint: {error}") from error
