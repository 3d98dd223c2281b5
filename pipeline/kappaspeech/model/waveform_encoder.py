"""wav2vec2, HuBERT and WavLM as transformers saves them, frozen, as the speech encoder: they read waveforms.

B batch · N samples at 16 kHz · S encoder states (20 ms) · E encoder width
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.nn.utils.rnn import pad_sequence

from kappaspeech.artefacts import digest_json
from kappaspeech.errors import CheckpointError, ConfigError
from kappaspeech.model.family import LOADING_ERRORS, read_config
from kappaspeech.model.masked_whisper import EncoderDims
from kappaspeech.model.tensor_digests import digest_tensor

# transformers' names of the families → how people write them
WAVEFORM_FAMILIES = {"wav2vec2": "wav2vec2", "hubert": "HuBERT", "wavlm": "WavLM"}
_SAMPLE_RATE_HZ = 16_000
# they have no positions that would end; attention's squares, and Whisper, end here
_MAX_SECONDS = 30
# as transformers' feature extractor
_VARIANCE_FLOOR = 1e-7
# the first convolution's output, its norm's, and GELU's
_EXTRACTION_COPIES = 3


@dataclass(frozen=True)
class WaveformDims(EncoderDims):
    """The dimensions of an encoder whose frames are samples, in one row. The first state is made of `first_frames` of them, each
    further one of `frames_per_state` more.

    `extraction_elements` are those that a state's share of the first convolution takes, the widest point.
    """

    first_frames: int = 400
    extraction_elements: int = 0

    @property
    def seconds_per_state(self) -> float:
        return self.frames_per_state / _SAMPLE_RATE_HZ

    def count_states(self, num_frames: int) -> int:
        """The number of states of a clip of `num_frames` samples: one at least, as shorter clips are filled with silence."""
        return max(1, (num_frames - self.first_frames) // self.frames_per_state + 1)


class FrozenWaveformEncoder(nn.Module):
    """The modules of a wav2vec2, HuBERT or WavLM, always in eval mode and without gradients.

    Each clip passes the convolutions alone, at its own length: a group norm among them takes its statistics over the whole input,
    so padding would change every state. The layers see all clips together and attend to no padding. So a clip's states don't
    depend on the other clips of its batch; transformers' own depend on them, for checkpoints with a group norm.
    """

    pad_to_30s = False

    def __init__(self, model: Any, *, normalises: bool) -> None:
        """`model` is transformers' own. `normalises`: each clip is brought to zero mean and unit variance."""
        super().__init__()
        self.feature_extractor, self.feature_projection, self.encoder = (
            model.feature_extractor,
            model.feature_projection,
            model.encoder,
        )
        self._fold_weight_norm()
        # some HuBERTs shift their padding by a batch norm before the positions' convolution, which reads it
        self._positions_mix_padding = getattr(self.encoder.pos_conv_embed, "batch_norm", None) is not None
        self.normalises = normalises
        self._config = model.config
        self.dims = find_dims(model.config)
        self.requires_grad_(False)
        self.eval()

    @property
    def dtype(self) -> torch.dtype:
        """The dtype in which waveforms are encoded and states are returned."""
        dtype: torch.dtype = self.feature_projection.projection.weight.dtype
        return dtype

    @property
    def num_layers(self) -> int:
        return len(self.encoder.layers)

    @property
    def weights_per_state(self) -> int:
        """The number of weights that a state is multiplied with: a convolution's at each of its own outputs."""
        strides, num_convolved = list(self._config.conv_stride), 0
        for layer, convolution in enumerate(self.feature_extractor.conv_layers):
            num_convolved += prod(strides[layer + 1 :]) * convolution.conv.weight.numel()
        matrices = self.feature_projection.projection.weight.numel() + self.encoder.pos_conv_embed.conv.weight.numel()
        for name, parameter in self.encoder.layers.named_parameters():
            if parameter.ndim == 2 and "rel_attn_embed" not in name:
                # WavLM's gate multiplies each head by the same weights
                heads = self._config.num_attention_heads if "gru_rel_pos_linear" in name else 1
                matrices += heads * parameter.numel()
        return int(num_convolved + matrices)

    def digests(self) -> dict[str, str]:
        """SHA-256 of each of the encoder's tensors, as it computes with them, and of what else decides its states."""
        names = ("model_type", "conv_stride", "num_attention_heads", "hidden_act", "feat_extract_activation", "layer_norm_eps")
        settings = {name: getattr(self._config, name) for name in names}
        # WavLM's alone: the scale of its positions' buckets
        settings |= {name: getattr(self._config, name) for name in ("max_bucket_distance",) if hasattr(self._config, name)}
        kinds = [type(module).__name__ for module in (self.feature_extractor, self.encoder)]
        return {
            **{name: digest_tensor(tensor) for name, tensor in self.state_dict().items()},
            "settings": digest_json({**settings, "kinds": kinds, "normalises": self.normalises}),
        }

    def train(self, mode: bool = True) -> FrozenWaveformEncoder:  # noqa: ARG002 - frozen: there is no training mode
        return super().train(False)

    @torch.no_grad()
    def forward(self, waveforms_B1N: Tensor, num_samples_B: Tensor) -> tuple[Tensor, Tensor]:
        """Encode waveforms (B, 1, N) of `num_samples_B` samples each into states (B, S, E) and their counts (B,), on the CPU.

        States past a clip's count are zero. Raises `ValueError` for a clip of more than 30 s.
        """
        lengths = num_samples_B.tolist()
        if max(lengths) > _MAX_SECONDS * _SAMPLE_RATE_HZ:
            raise ValueError(f"a clip of {max(lengths)} samples exceeds the encoder's {_MAX_SECONDS} s; cut it first")
        counts = [self.dims.count_states(length) for length in lengths]
        parts = [self._extract(row[0, :length]) for row, length in zip(waveforms_B1N, lengths, strict=True)]
        hidden_BSE = pad_sequence(parts, batch_first=True)
        counts_B = torch.tensor(counts)
        if min(counts) == max(counts):
            return self.encoder(hidden_BSE).last_hidden_state, counts_B
        if self._positions_mix_padding:
            alone = [self.encoder(part_SE[None]).last_hidden_state[0] for part_SE in parts]
            return pad_sequence(alone, batch_first=True), counts_B
        places_S = torch.arange(hidden_BSE.shape[1], device=hidden_BSE.device)
        mask_BS = places_S[None, :] < counts_B.to(hidden_BSE.device)[:, None]
        states_BSE = self.encoder(hidden_BSE, attention_mask=mask_BS).last_hidden_state
        return states_BSE * mask_BS[:, :, None], counts_B

    def _extract(self, waveform_N: Tensor) -> Tensor:
        """A clip's convolved and projected states (S, E), before the layers."""
        waveform_N = waveform_N.float()
        if self.normalises:
            variance = waveform_N.var(correction=0)
            waveform_N = (waveform_N - waveform_N.mean()) / (variance + _VARIANCE_FLOOR).sqrt()
        missing = max(0, self.dims.first_frames - len(waveform_N))
        filled_N = nn.functional.pad(waveform_N, (0, missing)).to(self.dtype)
        projected = self.feature_projection(self.feature_extractor(filled_N[None]).transpose(1, 2))
        # wav2vec2 and WavLM return what they projected, too
        hidden_1SE: Tensor = projected[0] if isinstance(projected, tuple) else projected
        return hidden_1SE[0]

    def _fold_weight_norm(self) -> None:
        """Make the positions' convolution one weight, which is what its direction and its norm are in a frozen model."""
        convolution = self.encoder.pos_conv_embed.conv
        if convolution is not None and parametrize.is_parametrized(convolution):
            parametrize.remove_parametrizations(convolution, "weight")


def find_dims(config: Any) -> WaveformDims:
    """The dimensions of a wav2vec2, HuBERT or WavLM by its config."""
    kernels, strides = list(config.conv_kernel), list(config.conv_stride)
    frames_per_state = prod(strides)
    return WaveformDims(
        num_mels=1,
        width=config.hidden_size,
        max_states=_MAX_SECONDS * _SAMPLE_RATE_HZ // frames_per_state,
        frames_per_state=frames_per_state,
        first_frames=1 + sum((kernel - 1) * prod(strides[:layer]) for layer, kernel in enumerate(kernels)),
        extraction_elements=_EXTRACTION_COPIES * config.conv_dim[0] * prod(strides[1:]),
    )


def is_waveform_encoder(folder: str) -> bool:
    """Return whether `folder`, which transformers saved, holds a model that reads waveforms. Raises `CheckpointError`."""
    return read_config(folder).model_type in WAVEFORM_FAMILIES


def check_options(name: str, dims: EncoderDims, *, pad_to_30s: bool, num_masks: int) -> None:
    """Raise `ConfigError` for options that make no sense for waveforms: Whisper's padding, and masks on a spectrogram."""
    if not isinstance(dims, WaveformDims):
        return
    if pad_to_30s:
        raise ConfigError(
            f"model.pad_to_30s is how Whisper was trained, and {name} isn't one: it reads clips as long as they are. Set it to "
            "false."
        )
    if num_masks:
        raise ConfigError(
            f"data.augmentation masks a spectrogram, and {name} reads waveforms. Set data.augmentation.freq_masks and "
            "data.augmentation.time_masks to 0; other speeds may stay."
        )


def load_waveform_encoder(folder: str, *, dtype: torch.dtype) -> FrozenWaveformEncoder:
    """The encoder that transformers saved in `folder`, on the CPU, and all of it in `dtype`. Raises `CheckpointError`."""
    from transformers import AutoModel, Wav2Vec2FeatureExtractor
    from transformers.utils import logging

    family = WAVEFORM_FAMILIES[_check(folder).model_type]
    logging.disable_progress_bar()
    try:
        reading = Wav2Vec2FeatureExtractor.from_pretrained(folder)
    except LOADING_ERRORS as error:
        raise CheckpointError(
            f"{folder} has no preprocessor_config.json that can be read ({error}). It says whether the model's waveforms are "
            "normalised: fetch it from where the model came from."
        ) from error
    if (reading.sampling_rate, reading.feature_size) != (_SAMPLE_RATE_HZ, 1):
        raise CheckpointError(
            f"{folder} reads {reading.feature_size} values at {reading.sampling_rate} Hz, and speech here is one at "
            f"{_SAMPLE_RATE_HZ} Hz. Give another as model.encoder."
        )
    try:
        model, found = AutoModel.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
    except LOADING_ERRORS as error:
        raise CheckpointError(f"{folder} can't be loaded as a {family} of transformers: {error}") from error
    # the mask of its pretraining isn't used
    missing = sorted(name for name in found["missing_keys"] if not name.endswith("masked_spec_embed"))
    if missing:
        raise CheckpointError(
            f"{folder} lacks {len(missing)} tensors of a {family} (first: {missing[0]}), which would be drawn at random. Fetch "
            "or save the model again."
        )
    return FrozenWaveformEncoder(model, normalises=bool(reading.do_normalize)).to(dtype)


def build_meta_encoder(folder: str, *, dtype: torch.dtype) -> FrozenWaveformEncoder:
    """The encoder that `folder`'s config.json describes, without weights, on the meta device. Raises `CheckpointError`."""
    from transformers import AutoModel

    config = _check(folder)
    with torch.device("meta"):
        return FrozenWaveformEncoder(AutoModel.from_config(config), normalises=False).to(dtype)


def _check(folder: str) -> Any:
    config = read_config(folder)
    if getattr(config, "add_adapter", False):
        raise CheckpointError(
            f"{folder} has layers behind its encoder that shorten its states (add_adapter), and the adaptor that is trained here "
            "takes the encoder's own. Give a model without them as model.encoder."
        )
    return config
