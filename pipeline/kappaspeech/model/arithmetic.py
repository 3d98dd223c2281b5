"""The arithmetic of a model: its dtypes and attention, with the reason."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from kappaspeech.model.encoder import choose_encoder_dtype
from kappaspeech.model.family import Attentions
from kappaspeech.model.llm import choose_attention
from kappaspeech.model.precision import DTYPES, is_worth_it


@dataclass(frozen=True)
class Arithmetic:
    """The LLM's and the encoder's dtype, the LLM's attention as transformers knows it, and the reason in words.

    `flops_per_second`: the rate at which a core or GPU of the slowest rank multiplies in each dtype. `packs`: a micro-batch's
    clips are to be one row of the LLM; `why_padded` says why not, if that was left to the machine.
    """

    dtype: str
    encoder_dtype: str
    attention: str
    reason: str
    flops_per_second: Mapping[str, float]
    packs: bool = False
    why_padded: str | None = None

    @staticmethod
    def of(
        dtype: str,
        rates: Mapping[str, float],
        *,
        encoder_dtype: str = "auto",
        attention: str = "auto",
        takes: Attentions | None = None,
        reason: str = "as asked for",
    ) -> Arithmetic:
        """The arithmetic that goes with a dtype of the LLM, if a core or GPU multiplies at these `rates`; auto is the fastest
        that the LLM's family `takes`. Raises `ConfigError` for an attention that it doesn't take."""
        is_fast = is_worth_it(rates)
        return Arithmetic(
            dtype=dtype,
            encoder_dtype=choose_encoder_dtype(encoder_dtype, llm_dtype=dtype, bfloat16_is_fast=is_fast),
            attention=choose_attention(attention, dtype=dtype, bfloat16_is_fast=is_fast, takes=takes),
            reason=reason,
            flops_per_second=rates,
        )

    @property
    def torch_dtype(self) -> torch.dtype:
        return DTYPES[self.dtype]

    @property
    def encoder_torch_dtype(self) -> torch.dtype:
        return DTYPES[self.encoder_dtype]

    @property
    def line(self) -> str:
        """The line that a person reads."""
        return f"{self.dtype}: {self.reason}"

    def resolve(self, deepspeed_config: Mapping[str, Any]) -> dict[str, Any]:
        """The DeepSpeed JSON with its "auto" replaced, since DeepSpeed knows none."""
        if "bf16" not in deepspeed_config:
            return dict(deepspeed_config)
        return {**deepspeed_config, "bf16": {**deepspeed_config["bf16"], "enabled": self.dtype == "bfloat16"}}
