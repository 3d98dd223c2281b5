"""The encoder of a Whisper that transformers has saved, as openai-whisper's module: one computation under two sets of names."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from kappaspeech.errors import CheckpointError
from kappaspeech.model.family import LOADING_ERRORS, read_config

_LAYER = re.compile(r"layers\.(\d+)\.(.+)\.(weight|bias)")
# transformers' modules of a layer → openai-whisper's
_MODULES = {
    "self_attn.q_proj": "attn.query",
    "self_attn.k_proj": "attn.key",
    "self_attn.v_proj": "attn.value",
    "self_attn.out_proj": "attn.out",
    "self_attn_layer_norm": "attn_ln",
    "fc1": "mlp.0",
    "fc2": "mlp.2",
    "final_layer_norm": "mlp_ln",
}
_OUTSIDE = {
    "embed_positions.weight": "positional_embedding",
    "layer_norm.weight": "ln_post.weight",
    "layer_norm.bias": "ln_post.bias",
}


@dataclass(frozen=True)
class WhisperShape:
    """The sizes of a Whisper's encoder."""

    num_mels: int
    max_states: int
    width: int
    num_heads: int
    num_layers: int


def is_folder_of_transformers(name_or_path: str) -> bool:
    """Return whether a folder with a model's config.json is there."""
    return (Path(name_or_path) / "config.json").is_file()


def read_shape(folder: str) -> WhisperShape:
    """The sizes of the encoder in `folder`, by its config.json. Raises `CheckpointError` for another family's."""
    config = read_config(folder)
    if config.model_type != "whisper":
        raise CheckpointError(
            f"{folder} holds a model of type {config.model_type}, and the speech encoder is a Whisper, wav2vec2, HuBERT or "
            "WavLM. Give one as model.encoder: a folder that transformers saved, or a .pt file of openai-whisper."
        )
    if config.activation_function != "gelu":
        raise CheckpointError(
            f"{folder} is a Whisper with {config.activation_function}, and the encoder here has gelu, as Whisper's own. Give "
            "another as model.encoder."
        )
    # openai-whisper's modules have no other
    if config.encoder_ffn_dim != 4 * config.d_model:
        raise CheckpointError(
            f"{folder} is a Whisper whose layers are {config.encoder_ffn_dim} wide inside, and the encoder here has 4 times its "
            f"width, {4 * config.d_model}, as Whisper's own. Give another as model.encoder."
        )
    return WhisperShape(
        config.num_mel_bins, config.max_source_positions, config.d_model, config.encoder_attention_heads, config.encoder_layers
    )


def load_audio_encoder(folder: str) -> tuple[Any, WhisperShape]:
    """openai-whisper's `AudioEncoder` with the weights in `folder`, on the CPU, and its sizes. Raises `CheckpointError`."""
    from transformers import WhisperModel
    from transformers.utils import logging
    from whisper.model import AudioEncoder

    shape = read_shape(folder)
    logging.disable_progress_bar()
    try:
        whisper, found = WhisperModel.from_pretrained(folder, dtype="auto", output_loading_info=True)
    except LOADING_ERRORS as error:
        raise CheckpointError(f"{folder} can't be loaded as a Whisper of transformers: {error}") from error
    missing = sorted(name for name in found["missing_keys"] if name.startswith("encoder."))
    if missing:
        raise CheckpointError(
            f"{folder} lacks {len(missing)} tensors of Whisper's encoder (first: {missing[0]}), which would be drawn at random. "
            "Fetch or save the model again."
        )
    encoder = AudioEncoder(shape.num_mels, shape.max_states, shape.width, shape.num_heads, shape.num_layers)
    encoder.load_state_dict(rename(whisper.encoder.state_dict()))
    return encoder, shape


def rename(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """transformers' tensors of an encoder under openai-whisper's names."""
    renamed = {}
    for name, tensor in state.items():
        layer = _LAYER.fullmatch(name)
        own = f"blocks.{layer[1]}.{_MODULES[layer[2]]}.{layer[3]}" if layer else _OUTSIDE.get(name, name)
        renamed[own] = tensor
    return renamed
