"""Plain text beside a batch of speech: rows of the same forward pass, whose every token but the first is foretold.

T texts · M tokens, padded at the right · N whole sequence · H LLM width · K foretold tokens, flattened
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from kappaspeech.labels import IGNORED_LABEL
from kappaspeech.model.label_logits import KeptStates


@dataclass(frozen=True)
class TextRows:
    """`ids_TM` on the host, padded with `IGNORED_LABEL`; what the base's head is given there, if the texts are an anchor.

    Σ −log p counts `weight` times in the loss that is minimised, and Σ KL(base ‖ now) `anchor_weight` times.
    """

    ids_TM: Tensor
    weight: float
    anchor_weight: float
    base: KeptStates | None = None

    @property
    def lengths(self) -> Tensor:
        """The number of tokens of each text (T,)."""
        return (self.ids_TM != IGNORED_LABEL).sum(dim=1)

    def places(self) -> tuple[Tensor, Tensor, Tensor]:
        """The text of each foretold token, the position that foretells it, and the token itself, (K,) each, on the host."""
        texts_K, positions_K = (self.ids_TM[:, 1:] != IGNORED_LABEL).nonzero(as_tuple=True)
        return texts_K, positions_K, self.ids_TM[texts_K, positions_K + 1]

    @property
    def tokens(self) -> Tensor:
        """The tokens, with some token in the place of padding."""
        return self.ids_TM.clamp(min=0)


def pad_texts(texts: Sequence[Sequence[int]]) -> Tensor:
    """Texts of token ids as one tensor (T, M)."""
    ids_TM = torch.full((len(texts), max(map(len, texts))), IGNORED_LABEL)
    for row, text in enumerate(texts):
        ids_TM[row, : len(text)] = torch.tensor(text)
    return ids_TM
