"""The modules of a configuration without their weights, on torch's meta device: what a plan needs of a 70B model in seconds."""

from __future__ import annotations

from pathlib import Path

import torch

from kappaspeech.config.deepspeed_config import read_deepspeed_config, read_precision
from kappaspeech.config.run_config import RunConfig
from kappaspeech.errors import CheckpointError, InputError
from kappaspeech.model.adaptor import Adaptor, AdaptorShape
from kappaspeech.model.arithmetic import Arithmetic
from kappaspeech.model.encoder import EncoderDims, FrozenWhisperEncoder, SpeechEncoder
from kappaspeech.model.family import read_attentions, read_config
from kappaspeech.model.marking import mark_trained
from kappaspeech.model.meta_llm import build_meta_llm, config_folder
from kappaspeech.model.packed_rows import check_packing, why_not_packed
from kappaspeech.model.speech_llm import SpeechLLM, embedding_width
from kappaspeech.model.transformers_whisper import is_folder_of_transformers, read_shape
from kappaspeech.model.waveform_encoder import build_meta_encoder, check_options, is_waveform_encoder
from kappaspeech.planning.known_models import find_encoder, list_encoders
from kappaspeech.scan.checkpoint import open_checkpoint
from kappaspeech.selection.tensor_selection import TensorSelection

_MAX_STATES = 1500
_STATES_PREFIX = "encoder."


def build_meta_model(
    config: RunConfig, *, read_selection: bool = True, arithmetic: Arithmetic | None = None
) -> tuple[SpeechEncoder, SpeechLLM]:
    """Encoder and speech LLM as `config` describes them, `requires_grad` as in training. Raises `InputError`.

    Of the LLM only config.json is read, of an encoder's file only its table of contents. Without `read_selection`, nothing of
    the LLM trains. Without `arithmetic`, what is left to the machine is as on a GPU that is fast in bfloat16.
    """
    selection_path = config.unfreeze.selection if read_selection else None
    if selection_path is not None and not Path(selection_path).exists():
        raise InputError(
            f"There is no selection at {selection_path}. Make it with `kappaspeech select`; for a plan before that, say how many "
            "of the LLM's parameters will train: --trained-parameters 3e9."
        )
    packs = config.batch.packing is True
    if arithmetic is not None:
        packs = arithmetic.packs
        dtype, encoder_dtype, attention = arithmetic.torch_dtype, arithmetic.encoder_torch_dtype, arithmetic.attention
    else:
        dtype = torch.float32 if read_precision(read_deepspeed_config(Path(config.deepspeed))) == "float32" else torch.bfloat16
        encoder_dtype = torch.float32 if config.model.encoder_dtype == "float32" else torch.bfloat16
        takes, wanted = read_attentions(config_folder(config.model.llm)), config.model.attn_implementation
        takes.check(wanted)
        # if FlashAttention 2 isn't installed, what keeps as much
        attention = "eager" if wanted == "eager" else takes.default
        check_packing(config.batch.packing, why_not_packed(read_config(config_folder(config.model.llm)), attention))
    encoder = _build_encoder(config, dtype=encoder_dtype)
    llm = build_meta_llm(config.model.llm, dtype=dtype, attention=attention)
    if read_selection:
        selection = TensorSelection.read(Path(selection_path)) if selection_path else None
        with torch.device("meta"):
            mark_trained(llm, config.unfreeze, selection, seed=config.seed)
    else:
        llm.requires_grad_(False)
    options = config.model.adaptor
    width = embedding_width(llm)
    shape = AdaptorShape(
        encoder_width=encoder.dims.width,
        llm_width=width,
        width=options.width or width,
        num_heads=options.num_heads,
        stacking=options.stacking,
        dropout=options.dropout,
        embedding_std=1.0,
    )
    with torch.device("meta"):
        return encoder, SpeechLLM(Adaptor(shape).to(dtype), llm, packs=packs)


def _build_encoder(config: RunConfig, *, dtype: torch.dtype) -> SpeechEncoder:
    from whisper.model import AudioEncoder

    name, max_states = config.model.encoder, _MAX_STATES
    if is_folder_of_transformers(name):
        if is_waveform_encoder(name):
            encoder = build_meta_encoder(name, dtype=dtype)
            masks = config.data.augmentation.num_masks
            check_options(name, encoder.dims, pad_to_30s=config.model.pad_to_30s, num_masks=masks)
            return encoder
        shape = read_shape(name)
        num_mels, width, num_heads, num_layers = shape.num_mels, shape.width, shape.num_heads, shape.num_layers
        max_states = shape.max_states
    else:
        num_mels, width, num_heads, num_layers = _find_encoder_shape(name)
    with torch.device("meta"):
        whisper = AudioEncoder(num_mels, max_states, width, num_heads, num_layers).to(dtype)
    return FrozenWhisperEncoder(whisper, EncoderDims(num_mels, width, max_states), pad_to_30s=config.model.pad_to_30s)


def _find_encoder_shape(name_or_path: str) -> tuple[int, int, int, int]:
    """Mels, width, heads and layers, by openai-whisper's name or from a file's tensors. Raises `CheckpointError`."""
    if not Path(name_or_path).is_file():
        known = find_encoder(name_or_path)
        if known is None:
            raise CheckpointError(
                f"{name_or_path!r} is neither a file nor one of openai-whisper's names ({list_encoders()}). Give one as "
                "model.encoder."
            )
        return known
    checkpoint = open_checkpoint(name_or_path)
    first = f"{_STATES_PREFIX}conv1.weight"
    if first not in checkpoint:
        raise CheckpointError(f"{name_or_path} holds no {first}: it is no checkpoint of openai-whisper.")
    width, num_mels, _ = checkpoint.shape_of(first)
    names = [ref.name for ref in checkpoint.tensors if ref.name.startswith(f"{_STATES_PREFIX}blocks.")]
    layers = sum(name.endswith(".attn_ln.weight") for name in names)
    # every Whisper has heads of 64
    return num_mels, width, max(1, width // 64), layers
