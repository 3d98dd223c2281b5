"""The decoder layers that keep only their input for the backward pass, and are computed again there."""

from __future__ import annotations

from typing import Any, Literal

from kappaspeech.errors import ConfigError
from kappaspeech.model.llm import decoder_layers

_KEY = "training.activation_checkpointing"


def count_recomputed(wanted: bool | int, *, num_layers: int) -> int:
    """The number of `num_layers` layers that `training.activation_checkpointing` means. Raises `ConfigError` past that."""
    if isinstance(wanted, bool):
        return num_layers if wanted else 0
    if wanted > num_layers:
        raise ConfigError(
            f"{_KEY} is {wanted}, and this LLM has {num_layers} layers. Give at most as many; true, "
            "which is all of them; or auto, which is as many as memory asks for."
        )
    return wanted


def most_recomputed(num_layers: int) -> int:
    """The most layers that it saves memory to compute again: all but the last, which the backward comes to at once."""
    return max(num_layers - 1, 0)


def recompute_layers(llm: Any, wanted: bool | int | Literal["auto"]) -> int:
    """Let `llm` compute its first layers, `wanted` of them, again in each backward pass; return their number.

    The backward comes to these last: by then, what the other layers kept is gone. auto is all that saves memory, until a plan
    decides otherwise. A model that knows only all or none gets all. Raises `ConfigError`.
    """
    layers = decoder_layers(llm)
    number = most_recomputed(len(layers)) if wanted == "auto" else count_recomputed(wanted, num_layers=len(layers))
    if number and not llm.supports_gradient_checkpointing:
        if wanted == "auto":
            return 0
        raise ConfigError(f"transformers can't compute the layers of a {type(llm).__name__} again: set {_KEY} to false.")
    if number:
        llm.gradient_checkpointing_enable({"use_reentrant": False})
        if not all(hasattr(layer, "gradient_checkpointing") for layer in layers):
            return len(layers)
    for module in llm.modules() if number == 0 else layers[number:]:
        if getattr(module, "gradient_checkpointing", False):
            module.gradient_checkpointing = False
    return number
