"""Facts that transformers knows of an LLM's family, by its config alone: nothing of the model is loaded or built."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kappaspeech.errors import CheckpointError, ConfigError
from kappaspeech.model.config_limits import check_size

_COMMON_WIDTH = 4096
# errors that transformers raises for configs, files and tokenizers that it can't make sense of
LOADING_ERRORS = (OSError, ValueError, LookupError, ImportError, AttributeError, TypeError, RuntimeError)
FLASH_ATTENTION = "flash_attention_2"


@dataclass(frozen=True)
class Attentions:
    """The attentions that a family takes beside eager: torch's fused one, FlashAttention 2, and one that is registered.

    A soft cap or sinks are more than the fused one computes, so families with these lack it.
    """

    family: str = "this model"
    sdpa: bool = True
    flash: bool = True
    registered: bool = True

    @property
    def default(self) -> str:
        """The attention that serves on every machine."""
        return "sdpa" if self.sdpa else "eager"

    def check(self, attention: str) -> None:
        """Raise `ConfigError` for an attention that transformers would refuse once the model is loaded."""
        lacks = {"sdpa": not self.sdpa, FLASH_ATTENTION: not self.flash}
        if lacks.get(attention):
            raise ConfigError(
                f"model.attn_implementation is {attention}, which {self.family} can't compute its attention by. Set it to auto, "
                f"which takes {self.default} here."
            )


def read_config(name_or_path: str) -> Any:
    """An LLM's config as transformers reads it. Raises `CheckpointError`."""
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(name_or_path, trust_remote_code=False)
    except LOADING_ERRORS as error:
        raise CheckpointError(explain(name_or_path, error)) from error
    check_size(name_or_path, config)
    return config


def find_class(config: Any) -> Any:
    """The class of causal LMs of this config. Raises `CheckpointError` if transformers has none."""
    from transformers import AutoModelForCausalLM

    try:
        found = AutoModelForCausalLM._model_mapping[type(config)]
    except KeyError:
        raise CheckpointError(
            f"transformers has no causal LM for models of type {config.model_type}. Give a model that writes text as model.llm."
        ) from None
    return found[0] if isinstance(found, (list, tuple)) else found


def read_attentions(name_or_path: str) -> Attentions:
    """The attentions that an LLM takes. Raises `CheckpointError`."""
    return attentions_of(find_class(read_config(name_or_path)))


def attentions_of(llm_class: Any) -> Attentions:
    """The attentions of a class, by transformers' own flags."""
    kernels = getattr(llm_class, "_compatible_flash_implementations", None)
    return Attentions(
        family=llm_class.__name__,
        sdpa=bool(getattr(llm_class, "_supports_sdpa", False)),
        # other kernels would be fetched from the hub
        flash=bool(getattr(llm_class, "_supports_flash_attn", False)) and (not kernels or FLASH_ATTENTION in kernels),
        registered=bool(getattr(llm_class, "_supports_attention_backend", False)),
    )


def check_hears(config: Any) -> None:
    """Raise `CheckpointError` for a family that can't be trained to hear here, saying what is missing."""
    llm_class = find_class(config)
    name = llm_class.__name__
    if getattr(config, "is_encoder_decoder", False):
        raise CheckpointError(
            f"{name} has an encoder of its own for what it reads, and audio has to be put among a decoder's words. "
            "Give a decoder-only model as model.llm."
        )
    if getattr(config.get_text_config(decoder=True), "hidden_size_per_layer_input", None):
        raise CheckpointError(
            f"{name} reads each token once more in every layer, and audio has none. Give a model of another family as model.llm; "
            "docs/families.md lists them."
        )
    for method, does in ((llm_class.forward, "reads"), (llm_class.prepare_inputs_for_generation, "continues")):
        if "inputs_embeds" not in inspect.signature(method).parameters:
            raise CheckpointError(
                f"{name} {does} token ids alone in this transformers, and audio is given to it as embeddings (inputs_embeds). "
                "Give a model of another family as model.llm; docs/families.md lists them."
            )


def read_widths(name_or_path: str) -> tuple[int, int]:
    """The width of an LLM and the inner width of its MLP, by its config. Raises `CheckpointError`.

    If the config doesn't name them, they are those of a common LLM.
    """
    config = read_config(name_or_path).get_text_config(decoder=True)
    width = getattr(config, "hidden_size", None)
    inner_width = getattr(config, "intermediate_size", None)
    return (width if isinstance(width, int) else _COMMON_WIDTH), (inner_width if isinstance(inner_width, int) else _COMMON_WIDTH)


def explain(name_or_path: str, error: Exception) -> str:
    """The message for a user if transformers couldn't load an LLM or its tokenizer."""
    if "trust_remote_code" in str(error):
        return (
            f"{name_or_path} is loaded by Python files of its own (auto_map), which are never run here: transformers itself has "
            "no such model or tokenizer. Give a model of another family as model.llm; docs/families.md lists them."
        )
    if Path(name_or_path).is_dir():
        return f"{name_or_path} can't be loaded as a causal LM: {error}"
    return (
        f"There is no model folder at {name_or_path!r}, and it can't be fetched by that name either: "
        f"{str(error).splitlines()[0]} Give a folder with config.json and safetensors as model.llm."
    )
