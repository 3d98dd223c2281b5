"""Limits of the model that a config.json may describe: a larger one would keep a machine busy for ever before anything fails."""

from __future__ import annotations

from typing import Any

from kappaspeech.errors import CheckpointError

# name → a hundredfold or more of the most that any model has had
_MOST = {
    "num_hidden_layers": 10_000,
    "n_layer": 10_000,
    "num_layers": 10_000,
    "num_local_experts": 100_000,
    "num_experts": 100_000,
    "n_routed_experts": 100_000,
    "num_attention_heads": 100_000,
    "hidden_size": 10_000_000,
    "intermediate_size": 100_000_000,
    "vocab_size": 100_000_000,
}


def check_size(where: str, config: Any) -> None:
    """Raise `CheckpointError` if a transformers config describes a model that nobody could have trained."""
    for part in (config, getattr(config, "text_config", None)):
        for name, most in _MOST.items():
            value = getattr(part, name, None)
            if isinstance(value, (int, float)) and not isinstance(value, bool) and not 0 <= value <= most:
                raise CheckpointError(
                    f"{where}: config.json says {name}: {value!r}; at most {most:,} is believed. Fetch it again."
                )
