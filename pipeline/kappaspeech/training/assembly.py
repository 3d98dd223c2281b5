"""The parts of a run, read and fitted together before DeepSpeed takes hold of them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from kappaspeech.artefacts import digest_json
from kappaspeech.config.model_config import UnfreezeConfig
from kappaspeech.config.run_config import RunConfig
from kappaspeech.errors import CheckpointError, SelectionError
from kappaspeech.model.adaptor import AdaptorShape
from kappaspeech.model.arithmetic import Arithmetic
from kappaspeech.model.embedded_words import check_embedded_words
from kappaspeech.model.encoder import SpeechEncoder, load_encoder
from kappaspeech.model.family import check_hears, read_config
from kappaspeech.model.freezing import check_tensors_are_stored
from kappaspeech.model.llm import load_llm, load_tokenizer
from kappaspeech.model.lora import LoraShape
from kappaspeech.model.marking import mark_trained
from kappaspeech.model.packed_rows import pack_rows, packed_otherwise
from kappaspeech.model.recomputation import recompute_layers
from kappaspeech.model.speech_llm import SpeechLLM, embedding_width, token_embedding_std
from kappaspeech.model.stored_names import model_names
from kappaspeech.model.trained import build_adaptor
from kappaspeech.model.waveform_encoder import check_options
from kappaspeech.runs.first_adaptor import AdaptorOrigin, read_first_adaptor
from kappaspeech.scan.checkpoint import open_checkpoint
from kappaspeech.selection.tensor_selection import TensorSelection
from kappaspeech.speech.prompt import SpeechPrompt, make_configured_prompt


@dataclass(frozen=True)
class Assembly:
    """The models, on the CPU, with `requires_grad` on all that trains. `lora` is None unless the run trains by LoRA, and
    `first_adaptor` unless the run began with another run's adaptor."""

    encoder: SpeechEncoder
    tokenizer: Any
    prompt: SpeechPrompt
    model: SpeechLLM
    selection: TensorSelection | None
    lora: LoraShape | None
    adaptor_shape: AdaptorShape
    base_digest: str
    arithmetic: Arithmetic
    first_adaptor: AdaptorOrigin | None = None

    @property
    def rule(self) -> str:
        """The rule by which tensors beside the adaptor train, in words."""
        chosen = self.selection.rule if self.selection else None
        if self.lora is not None:
            return f"LoRA of rank {self.lora.rank} on {chosen or 'every linear module but the head'}"
        if chosen is None and any(p.requires_grad for p in self.model.llm.parameters()):
            return "the whole LLM"
        return chosen or "adaptor only"


def assemble(config: RunConfig, arithmetic: Arithmetic, *, kept_adaptor: AdaptorOrigin | None = None) -> Assembly:
    """Read models and selection, check that they fit each other, and mark the tensors that train. No rank talks to another.

    With `kept_adaptor`, the origin of a first adaptor that checkpoints have gone on from, none is read.
    """
    checkpoint = open_checkpoint(config.model.llm)
    base_digest = checkpoint.digest
    selection = TensorSelection.read(Path(config.unfreeze.selection)) if config.unfreeze.selection else None
    if selection is not None and selection.checkpoint_digest != base_digest:
        raise SelectionError(
            f"{config.unfreeze.selection} was made from checkpoint {selection.checkpoint_digest[:12]}…; {config.model.llm} is "
            f"{base_digest[:12]}…. Run the scan on this checkpoint and select again."
        )
    check_hears(read_config(config.model.llm))
    dtype = arithmetic.torch_dtype
    encoder = load_encoder(config.model.encoder, pad_to_30s=config.model.pad_to_30s, dtype=arithmetic.encoder_torch_dtype)
    masks = config.data.augmentation.num_masks
    check_options(config.model.encoder, encoder.dims, pad_to_30s=config.model.pad_to_30s, num_masks=masks)
    tokenizer = load_tokenizer(config.model.llm)
    llm = load_llm(config.model.llm, dtype=dtype, attention=arithmetic.attention)
    check_embedded_words(llm)
    packs = arithmetic.packs and pack_rows(llm, arithmetic.attention)
    if config.batch.packing is True and not packs:
        raise CheckpointError(f"batch.packing is true, and {packed_otherwise(llm)}. Set it to auto or false.")
    shape = adaptor_shape(config, encoder, llm)
    if config.unfreeze.mode == "all":
        # a tensor trained under a name that the files don't have couldn't be put back among them
        stored = [alias for ref in checkpoint.tensors for alias in (ref.name, *ref.aliases)]
        check_tensors_are_stored(llm, [*stored, *model_names(llm, stored).values()])
    lora = mark_trained(llm, config.unfreeze, selection, seed=config.seed)
    _settle_dtype(llm, dtype)
    recompute_layers(llm, config.training.activation_checkpointing)
    adaptor = build_adaptor(shape, seed=config.seed).to(dtype)
    if kept_adaptor is None and config.model.adaptor.initial is not None:
        first = read_first_adaptor(Path(config.model.adaptor.initial))
        first.put_into(adaptor)
        origin: AdaptorOrigin | None = first.origin
    else:
        origin = kept_adaptor
    model = SpeechLLM(adaptor, llm, alignment_weight=config.training.alignment_weight, packs=packs)
    prompt = make_configured_prompt(tokenizer, config)
    return Assembly(encoder, tokenizer, prompt, model, selection, lora, shape, base_digest, arithmetic, origin)


def _settle_dtype(llm: Any, dtype: torch.dtype) -> None:
    """Bring the tensors that train to one dtype, as ZeRO-3 needs: some families keep a few in float32. Masters are anyway."""
    for parameter in llm.parameters():
        if parameter.requires_grad and parameter.dtype != dtype:
            parameter.data = parameter.data.to(dtype)


def digest_trained(options: UnfreezeConfig, selection: TensorSelection | None) -> str:
    """A digest of the options and selection that decide which tensors train, as 64 hex digits."""
    shapes = selection.shapes if selection else {}
    if options.osf is not None:
        return digest_json({"shapes": shapes, "osf": options.osf.model_dump()})
    if options.mode in ("selection", "adaptor"):
        return digest_json(shapes)
    return digest_json({"mode": options.mode, "lora": options.lora and options.lora.model_dump(), "shapes": shapes})


def adaptor_shape(config: RunConfig, encoder: SpeechEncoder, llm: Any) -> AdaptorShape:
    """The adaptor's options, with the widths that it takes from the two models on its sides."""
    options = config.model.adaptor
    llm_width = embedding_width(llm)
    return AdaptorShape(
        encoder_width=encoder.dims.width,
        llm_width=llm_width,
        width=options.width or llm_width,
        num_heads=options.num_heads,
        stacking=options.stacking,
        dropout=options.dropout,
        embedding_std=token_embedding_std(llm),
    )
