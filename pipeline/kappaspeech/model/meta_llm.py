"""A causal LM's modules without their weights, on torch's meta device: names and shapes of a 70B model in seconds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from kappaspeech.errors import CheckpointError
from kappaspeech.model.family import LOADING_ERRORS, check_hears, read_config
from kappaspeech.model.hub_cache import find_cached
from kappaspeech.model.llm import make_known, settle


def build_meta_llm(name_or_path: str, *, dtype: torch.dtype = torch.bfloat16, attention: str = "auto") -> Any:
    """A causal LM's modules without weights. Raises `CheckpointError`, also for a family that can't be trained to hear."""
    from transformers import AutoModelForCausalLM

    config = read_config(config_folder(name_or_path))
    check_hears(config)
    try:
        with torch.device("meta"):
            llm = AutoModelForCausalLM.from_config(
                config, dtype=dtype, attn_implementation=make_known(attention), trust_remote_code=False
            )
            return settle(llm)
    except LOADING_ERRORS as error:
        raise CheckpointError(f"{name_or_path} has no config.json that a causal LM can be built from: {error}") from error


def config_folder(name_or_path: str) -> str:
    """The folder of an LLM, or of its config.json in the hub's local cache: nothing is downloaded. Raises `CheckpointError`."""
    found = name_or_path if Path(name_or_path).is_dir() else find_cached(name_or_path)
    if found is None:
        raise CheckpointError(
            f"There is no folder {name_or_path!r}, and the hub's local cache has no model of that name. A plan needs its "
            "config.json alone: put that into a folder and give it with --set model.llm=FOLDER."
        )
    return found
