"""The arithmetic in which a trained model is used, on any machine."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from kappaspeech.model.family import FLASH_ATTENTION, Attentions
from kappaspeech.model.llm import choose_attention
from kappaspeech.model.precision import DTYPES, is_worth_it


@dataclass(frozen=True)
class UseArithmetic:
    """The arithmetic of a trained model's use: that of its training, but never bfloat16 on a machine that is slow in it.

    float32 holds every number of bfloat16, so the model stays the one that was trained; its sums are rounded later.
    """

    bfloat16_is_fast: bool

    @staticmethod
    def of(rates: Mapping[str, float]) -> UseArithmetic:
        """The arithmetic of a machine that multiplies at these operations a second, by dtype."""
        return UseArithmetic(is_worth_it(rates))

    def dtype(self, trained_in: str) -> torch.dtype:
        """The dtype in which weights that were trained in `trained_in` are multiplied here."""
        return DTYPES[trained_in] if self.bfloat16_is_fast else torch.float32

    def attention(self, trained_in: str, *, kept: str = "auto", takes: Attentions | None = None) -> str:
        """The LLM's attention here, as transformers knows it: the one that its run has `kept`, if this machine has it.

        With auto, it is the fastest that computes the same and that the LLM's family `takes`.
        """
        if kept == FLASH_ATTENTION and not torch.cuda.is_available():
            kept = "auto"
        return choose_attention(kept, dtype=trained_in, bfloat16_is_fast=self.bfloat16_is_fast, takes=takes)


def keep_attention(wanted: str, recorded: str | None) -> str:
    """The attention for later loads of a run's model: its configuration's; if that is auto, eager if the run computed by it."""
    return "eager" if wanted == "auto" and recorded == "eager" else wanted
