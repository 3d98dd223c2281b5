"""The causal LM and its tokenizer, from a folder or a hub id."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from pipeline.errors import CheckpointError
from pipeline.model.attention import MATMUL_ATTENTION, register_matmul_attention
from pipeline.model.config_limits import check_size

_COMMON_WIDTH = 4096


def load_llm(name_or_path: str, *, dtype: torch.dtype | None, attention: str = "auto") -> Any:
    """A transformers causal LM on the CPU, its files mapped and not copied where they are of `dtype` (None: whatever they are).

    `attention` is transformers' `attn_implementation`, this project's own, or auto: sdpa. Raises `CheckpointError`.
    """
    from transformers import AutoConfig, AutoModelForCausalLM
    from transformers.utils import logging

    # its bar for each of several loads a run would hide this project's own
    logging.disable_progress_bar()
    try:
        check_size(name_or_path, AutoConfig.from_pretrained(name_or_path))
        llm = AutoModelForCausalLM.from_pretrained(
            name_or_path, dtype=dtype or "auto", attn_implementation=_make_known(attention)
        )
    except (OSError, ValueError, ImportError) as error:
        raise CheckpointError(_explain(name_or_path, error)) from error
    return llm.eval()


def choose_attention(attention: str, *, dtype: str, bfloat16_is_fast: bool) -> str:
    """`attention`, with auto resolved: FlashAttention 2 where a GPU, the package and a 16-bit dtype are there; matrix products
    on processors that are fast in bfloat16, where it is computed in; else sdpa."""
    if attention != "auto":
        return attention
    from transformers.utils import is_flash_attn_2_available

    if torch.cuda.is_available():
        return "flash_attention_2" if dtype == "bfloat16" and is_flash_attn_2_available() else "sdpa"
    return MATMUL_ATTENTION if dtype == "bfloat16" and bfloat16_is_fast else "sdpa"


def _make_known(attention: str) -> str:
    """`attention` as transformers will find it; left to the machine, it is what serves everywhere."""
    if attention == MATMUL_ATTENTION:
        register_matmul_attention()
    return "sdpa" if attention == "auto" else attention


def read_widths(name_or_path: str) -> tuple[int, int]:
    """The width of an LLM and the inner width of its MLP, by its config. Raises `CheckpointError`.

    Where the config doesn't name them, as large as a common one's.
    """
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(name_or_path)
    except (OSError, ValueError, KeyError) as error:
        raise CheckpointError(_explain(name_or_path, error)) from error
    width = getattr(config, "hidden_size", None)
    inner_width = getattr(config, "intermediate_size", None)
    return (width if isinstance(width, int) else _COMMON_WIDTH), (inner_width if isinstance(inner_width, int) else _COMMON_WIDTH)


def load_tokenizer(name_or_path: str) -> Any:
    """The LLM's tokenizer. Raises `CheckpointError`, also for one without an end-of-sequence token."""
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(name_or_path)
    except (OSError, ValueError) as error:
        raise CheckpointError(_explain(name_or_path, error)) from error
    if tokenizer.eos_token_id is None:
        raise CheckpointError(f"The tokenizer of {name_or_path} has no end-of-sequence token, so no transcript could end.")
    return tokenizer


def _explain(name_or_path: str, error: Exception) -> str:
    if Path(name_or_path).is_dir():
        return f"{name_or_path} can't be loaded as a causal LM: {error}"
    return (
        f"There is no model folder at {name_or_path!r}, and it can't be fetched by that name either: "
        f"{str(error).splitlines()[0]} Give a folder with config.json and safetensors as model.llm."
    )
