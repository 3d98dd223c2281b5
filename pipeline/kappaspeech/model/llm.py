"""The causal LM and its tokenizer, from a folder or a hub id."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from kappaspeech.errors import CheckpointError
from kappaspeech.model.attention import MATMUL_ATTENTION, register_matmul_attention
from kappaspeech.model.family import FLASH_ATTENTION, LOADING_ERRORS, Attentions, explain, read_config


def load_llm(name_or_path: str, *, dtype: torch.dtype | None, attention: str = "auto") -> Any:
    """A transformers causal LM on the CPU, its files mapped and not copied if they are of `dtype` (None: as they are).

    `attention` is transformers' `attn_implementation`, this project's own, or auto: the one that its family takes on every
    machine. Raises `CheckpointError`.
    """
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    # transformers' bar for each of a run's several loads would hide this project's own
    logging.disable_progress_bar()
    try:
        read_config(name_or_path)
        llm, found = AutoModelForCausalLM.from_pretrained(
            name_or_path,
            dtype=dtype or "auto",
            attn_implementation=make_known(attention),
            output_loading_info=True,
            trust_remote_code=False,
        )
    except LOADING_ERRORS as error:
        raise CheckpointError(explain(name_or_path, error)) from error
    _check_complete(name_or_path, llm, found)
    return settle(llm).eval()


def _check_complete(name_or_path: str, llm: Any, found: Mapping[str, Any]) -> None:
    """Raise `CheckpointError` if the files lack parameters: transformers draws them at random, with a warning."""
    parameters = {name for name, _ in llm.named_parameters()}
    missing = sorted(parameters.intersection(found["missing_keys"]))
    if missing:
        unknown = sorted(found["unexpected_keys"])
        beside = f", and the files' {unknown[0]} is none of the model's" if unknown else ""
        raise CheckpointError(
            f"{name_or_path} lacks {len(missing)} of {type(llm).__name__}'s tensors (first: {missing[0]}), which would be drawn "
            f"at random{beside}. Fetch or save the model again, by the config.json that its files belong to."
        )


def settle(llm: Any) -> Any:
    """`llm` with its logits as its only output: experts' router logits would be a second output with a graph, which ZeRO-3
    doesn't bear, and their loss isn't the transcripts'."""
    for config in (llm.config, llm.config.get_text_config(decoder=True)):
        if getattr(config, "output_router_logits", False):
            config.output_router_logits = False
    return llm


def decoder_layers(llm: Any) -> nn.ModuleList:
    """The LLM's layers, under any name that its family gives their list: of all lists, the one that holds the most."""
    lists = [module for module in llm.get_decoder().modules() if isinstance(module, nn.ModuleList)]
    if not lists:
        raise CheckpointError(f"{type(llm).__name__} has no list of layers. Give another model as model.llm.")
    return max(lists, key=lambda layers: sum(_numel(parameter) for parameter in layers.parameters()))


def _numel(parameter: Any) -> int:
    """The number of elements of the whole tensor, also if ZeRO-3 has partitioned it."""
    return int(getattr(parameter, "ds_numel", parameter.numel()))


def choose_attention(attention: str, *, dtype: str, bfloat16_is_fast: bool, takes: Attentions | None = None) -> str:
    """`attention`, with auto resolved. Auto is FlashAttention 2 if a GPU, the package and a 16-bit dtype are there; matrix
    products on processors that are fast in bfloat16, if the model computes in it; else torch's fused one; and eager for a family
    that computes more than these (`takes`). Raises `ConfigError` for one that the family lacks."""
    takes = takes or Attentions()
    if attention != "auto":
        takes.check(attention)
        return attention
    from transformers.utils import is_flash_attn_2_available

    if torch.cuda.is_available():
        return FLASH_ATTENTION if takes.flash and dtype == "bfloat16" and is_flash_attn_2_available() else takes.default
    by_products = dtype == "bfloat16" and bfloat16_is_fast and takes.sdpa and takes.registered
    return MATMUL_ATTENTION if by_products else takes.default


def make_known(attention: str) -> str | None:
    """`attention` as transformers will find it; None leaves it to the family."""
    if attention == MATMUL_ATTENTION:
        register_matmul_attention()
    return None if attention == "auto" else attention


def load_tokenizer(name_or_path: str) -> Any:
    """The LLM's tokenizer. Raises `CheckpointError`, also for one without an end-of-sequence token."""
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(name_or_path, trust_remote_code=False)
    except LOADING_ERRORS as error:
        raise CheckpointError(explain(name_or_path, error)) from error
    if tokenizer.eos_token_id is None:
        raise CheckpointError(f"The tokenizer of {name_or_path} has no end-of-sequence token, so no transcript could end.")
    return tokenizer
