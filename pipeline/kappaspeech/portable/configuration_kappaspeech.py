"""The configuration of a speech LLM: its LLM's own, the shapes of encoder and adaptor, and the prompt of its training."""

from __future__ import annotations

from typing import Any

from transformers import AutoConfig, PreTrainedConfig


class KappaSpeechConfig(PreTrainedConfig):
    """The configuration of a `KappaSpeechModel`.

    `text_config` is the LLM's. `encoder` has num_mels, width, max_states, frames_per_state, num_heads, num_layers, pad_to_30s and
    dtype; `adaptor` is an `AdaptorShape`; `prompt` has the token ids around the audio, prefix_ids and suffix_ids, and those of
    other instructions in `others`. `trained_in` is the dtype in which the LLM was trained.
    """

    model_type = "kappaspeech"
    sub_configs = {"text_config": AutoConfig}  # noqa: RUF012 - as transformers reads it

    def __init__(
        self,
        text_config: dict[str, Any] | PreTrainedConfig | None = None,
        encoder: dict[str, Any] | None = None,
        adaptor: dict[str, Any] | None = None,
        prompt: dict[str, Any] | None = None,
        trained_in: str = "float32",
        **others: Any,
    ) -> None:
        if isinstance(text_config, dict):
            text_config = AutoConfig.for_model(**text_config)
        self.text_config = text_config
        self.encoder: Any = encoder
        self.adaptor: Any = adaptor
        self.prompt: Any = prompt
        self.trained_in = trained_in
        super().__init__(**others)
