"""What training has cost: perplexity of plain text, and how far the trained tensors have moved.

N tokens · V vocabulary
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from pipeline.errors import DataError

# Longer texts are read in pieces; each piece begins without the context of the one before.
WINDOW_TOKENS = 1_024


@dataclass(frozen=True)
class TextScore:
    """Σ −log p over the tokens that had a token before them, in nats."""

    nats_sum: float
    num_tokens: int
    num_bytes: int

    def to_json(self) -> dict[str, Any]:
        return {
            "nats_sum": self.nats_sum,
            "num_tokens": self.num_tokens,
            "num_bytes": self.num_bytes,
            "perplexity": math.exp(self.nats_sum / self.num_tokens),
            "bits_per_byte": self.nats_sum / math.log(2) / self.num_bytes,
        }


def read_texts(path: Path) -> list[str]:
    """The texts of a file, one a line, blank lines left out. Raises `DataError`."""
    try:
        texts = [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} can't be read as text: {error}") from error
    if not texts:
        raise DataError(f"{path} holds no text; wanted is one text a line.")
    return texts


@torch.no_grad()
def score_texts(llm: Any, tokenizer: Any, texts: Sequence[str]) -> TextScore:
    """Score texts one by one, each from its beginning: a text's score doesn't depend on its neighbours."""
    device = llm.get_input_embeddings().weight.device
    nats_sum, num_tokens, num_bytes = 0.0, 0, 0
    for text in texts:
        ids = tokenizer(text)["input_ids"]
        num_bytes += len(text.encode())
        for start in range(0, len(ids), WINDOW_TOKENS):
            window_N = torch.tensor(ids[start : start + WINDOW_TOKENS], device=device)
            if len(window_N) < 2:
                continue
            logits_NV = llm(input_ids=window_N[None], use_cache=False).logits[0, :-1].float()
            nats_sum += float(functional.cross_entropy(logits_NV, window_N[1:], reduction="sum"))
            num_tokens += len(window_N) - 1
    return TextScore(nats_sum, num_tokens, num_bytes)


def pool_scores(scores: Sequence[TextScore]) -> TextScore:
    """The sum of scores."""
    return TextScore(
        math.fsum(score.nats_sum for score in scores),
        sum(score.num_tokens for score in scores),
        sum(score.num_bytes for score in scores),
    )


def relative_change(before: Tensor, after: Tensor) -> float | None:
    """‖W − W₀‖_F / ‖W₀‖_F in float32; None where W₀ is zero."""
    before, after = before.detach().float(), after.detach().float()
    norm = float(before.norm())
    return float((after - before).norm()) / norm if norm else None
