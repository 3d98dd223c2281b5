"""Results of decoding by any decoder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import torch

from kappaspeech.model.generation import LOOP_MIN_TOKENS, ends_in_loop
from kappaspeech.speech.samples import AudioSample

__all__ = ["LOOP_MIN_TOKENS", "Decoded", "Decoder", "Ending", "cut_at_end", "ends_in_loop"]

# It was said to its end; it was cut in a loop; it was cut at the longest length allowed.
Ending = Literal["end", "loop", "length"]


@dataclass(frozen=True)
class Decoded:
    """The text of one utterance, without anything taken from it, how it ended, its confidence if that was asked for, and the
    number of tokens that this is the mean of, the end among them; 0 if a decoder doesn't tell."""

    text: str
    ending: Ending
    confidence: float | None = None
    num_tokens: int = 0


class Decoder(Protocol):
    """A decoder of waveforms into text: a trained model, or plain Whisper."""

    @property
    def in_step(self) -> bool:
        """True if a batch is a collective: every rank must decode as many batches as every other."""

    def check(self, samples: Sequence[AudioSample]) -> None:
        """Raise `DataError` for what can't be decoded, before any rank begins."""

    def decode(self, samples: Sequence[AudioSample]) -> list[Decoded]:
        """One batch."""


def cut_at_end(ids: Sequence[int], eos_id: int) -> tuple[list[int], Ending]:
    """A row's tokens before the first EOS, which also pads, and how it ended.

    A row stops at its first loop, so one that ends in a loop hasn't ended by itself.
    """
    kept = list(ids)
    ended = eos_id in kept
    if ended:
        kept = kept[: kept.index(eos_id)]
    if bool(ends_in_loop(torch.tensor([kept], dtype=torch.long))[0]):
        return kept, "loop"
    return kept, "end" if ended else "length"
