"""The result of decoding, whoever decodes, and the rule that ends a row which has begun to repeat itself.

B batch · L tokens generated so far
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from kappaspeech.speech.samples import AudioSample

# A row loops once an n-gram of at most so many tokens stands at its end so often in a row, over so many tokens in all.
LOOP_LONGEST_NGRAM = 20
LOOP_MIN_REPEATS = 4
LOOP_MIN_TOKENS = 24

# It was said to its end; it was cut in a loop; it was cut at the longest length allowed.
Ending = Literal["end", "loop", "length"]


@dataclass(frozen=True)
class Decoded:
    """The text of one utterance, without anything taken from it, how it ended, and its confidence if that was asked for."""

    text: str
    ending: Ending
    confidence: float | None = None


class Decoder(Protocol):
    """A trained model, or plain Whisper, that turns waveforms into text."""

    @property
    def in_step(self) -> bool:
        """True if a batch is a collective: every rank must decode as many batches as every other."""

    def check(self, samples: Sequence[AudioSample]) -> None:
        """Raise `DataError` for what can't be decoded, before any rank begins."""

    def decode(self, samples: Sequence[AudioSample]) -> list[Decoded]:
        """One batch."""


def ends_in_loop(ids_BL: Tensor) -> Tensor:
    """True (B,) where a row's last tokens are one n-gram, again and again (`LOOP_…`)."""
    found_B = torch.zeros(ids_BL.shape[0], dtype=torch.bool, device=ids_BL.device)
    for size in range(1, LOOP_LONGEST_NGRAM + 1):
        span = max(LOOP_MIN_TOKENS, LOOP_MIN_REPEATS * size)
        if span > ids_BL.shape[1]:
            break
        tail = ids_BL[:, -span:]
        found_B |= (tail[:, size:] == tail[:, :-size]).all(dim=1)
    return found_B


def stop_at_loops(ids_BL: Tensor, _scores: Any, **_: Any) -> Tensor:
    """A stopping criterion of transformers' `generate`."""
    return ends_in_loop(ids_BL)


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
