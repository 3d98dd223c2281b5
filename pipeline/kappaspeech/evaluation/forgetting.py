"""Forgetting: perplexity of plain text, distance from the base model, and drift of the trained tensors.

N tokens · V vocabulary
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from kappaspeech.errors import DataError, TrainingError
from kappaspeech.speech.regular_files import is_litter
from kappaspeech.speech.text_files import read_lines, read_text

# Longer texts are read in pieces; each piece begins without the context of the one before.
WINDOW_TOKENS = 1_024
# Logits held at once, so that the weights needn't be changed for every window: what the base says is compared with them.
_HELD_LOGITS_BYTES = 1 << 30
# the loss of the largest perplexity that a float holds
_MOST_NATS = math.log(sys.float_info.max)
# A window of any two tokens, for a rank that has none left.
_STAND_IN = (0, 0)

# While such a context is open, an LLM computes what its base model does.
BaseWeights = Callable[[], AbstractContextManager[None]]


@dataclass(frozen=True)
class TextScore:
    """Σ −log p over the tokens that had a token before them, in nats.

    `kl_nats_sum` is Σ KL(base ‖ trained) of the next token at the same places, over the whole vocabulary; None if the base
    isn't known.
    """

    nats_sum: float
    num_tokens: int
    num_bytes: int
    kl_nats_sum: float | None = None

    def to_json(self) -> dict[str, Any]:
        """The sums as JSON, with the perplexity, bits per byte and mean KL that follow; a perplexity that no float holds is the
        largest one. Raises `DataError` if no token could be scored, `TrainingError` if a sum is no number.
        """
        if not self.num_tokens:
            raise DataError("A text in data.text is too short to be scored: no line or file of it has two tokens.")
        if not math.isfinite(self.nats_sum + (self.kl_nats_sum or 0.0)):
            raise TrainingError(
                f"A text in data.text has a loss of {self.nats_sum} nats, and KL {self.kl_nats_sum}: the LLM gives no numbers "
                "any more. Go back to an earlier checkpoint, or train again with a smaller optimizer.llm_learning_rate."
            )
        return {
            "nats_sum": self.nats_sum,
            "num_tokens": self.num_tokens,
            "num_bytes": self.num_bytes,
            "perplexity": math.exp(min(self.nats_sum / self.num_tokens, _MOST_NATS)),
            "bits_per_byte": self.nats_sum / math.log(2) / self.num_bytes,
            "kl_nats": None if self.kl_nats_sum is None else self.kl_nats_sum / self.num_tokens,
        }


def read_texts(path: Path) -> list[str]:
    """The texts of a file, one a line, blank lines left out; or of a folder, one a .txt file. Raises `DataError`."""
    try:
        if path.is_dir():
            files = sorted(file for file in path.glob("**/*.txt") if not is_litter(file.name))
            texts = [read_text(file).replace("\r\n", "\n").strip() for file in files]
        else:
            texts = [line.strip() for line in read_lines(path)]
    except OSError as error:
        raise DataError(f"{path} can't be read as text: {error}") from error
    texts = [text for text in texts if text]
    if not texts:
        raise DataError(f"{path} holds no text; wanted is a file of one text a line, or a folder of .txt files.")
    return texts


def cut_windows(tokenizer: Any, texts: Sequence[str], *, most_tokens: int | None = None) -> list[tuple[int, ...]]:
    """The token ids of texts in pieces of at most `most_tokens`, by default `WINDOW_TOKENS`; a piece of one token is left out."""
    size = most_tokens or WINDOW_TOKENS
    windows = []
    for text in texts:
        ids = tokenizer(text)["input_ids"]
        windows += [tuple(ids[start : start + size]) for start in range(0, len(ids), size)]
    return [window for window in windows if len(window) > 1]


def count_bytes(texts: Sequence[str]) -> int:
    """The length of texts in UTF-8."""
    return sum(len(text.encode()) for text in texts)


@torch.no_grad()
def score_windows(
    llm: Any, windows: Sequence[Sequence[int]], *, count: int, base: BaseWeights | None
) -> tuple[float, float | None]:
    """Σ −log p and Σ KL(base ‖ trained), in nats, over the windows.

    Both come from one model in memory: its trained tensors make way for the base's, once for as many windows as
    `_HELD_LOGITS_BYTES` of logits allow. `count` passes are made with either weights, the last ones over stand-ins: if the model
    is partitioned, every rank must make as many as every other.
    """
    device = llm.get_input_embeddings().weight.device
    filled = [*windows, *[_STAND_IN] * (count - len(windows))]
    vocab_size = llm.config.get_text_config(decoder=True).vocab_size
    held = max(1, _HELD_LOGITS_BYTES // (WINDOW_TOKENS * vocab_size * llm.dtype.itemsize))
    nats, kl_nats = [], []
    for start in range(0, count, held):
        ids = [torch.tensor(window, device=device) for window in filled[start : start + held]]
        logits = [_next_token_logits(llm, ids_N) for ids_N in ids]
        counted = max(0, len(windows) - start)
        for ids_N, logits_NV in list(zip(ids, logits, strict=True))[:counted]:
            nats.append(float(functional.cross_entropy(logits_NV.float(), ids_N[1:], reduction="sum")))
        if base is not None:
            with base():
                for place, ids_N in enumerate(ids):
                    base_logits_NV = _next_token_logits(llm, ids_N)
                    if place < counted:
                        kl_nats.append(_kl_nats(base_logits_NV, logits[place]))
    return math.fsum(nats), None if base is None else math.fsum(kl_nats)


def _next_token_logits(llm: Any, ids_N: Tensor) -> Tensor:
    logits_NV: Tensor = llm(input_ids=ids_N[None], use_cache=False).logits[0, :-1]
    return logits_NV


def _kl_nats(base_NV: Tensor, trained_NV: Tensor) -> float:
    """Σ_N Σ_V p (log p − log q), p the base's."""
    log_p_NV, log_q_NV = (functional.log_softmax(logits.float(), dim=-1) for logits in (base_NV, trained_NV))
    return float((log_p_NV.exp() * (log_p_NV - log_q_NV)).sum(dim=-1).double().sum())


def pool_scores(scores: Sequence[TextScore]) -> TextScore:
    """The sum of scores. KL is known if it is known of every one."""
    kl = [score.kl_nats_sum for score in scores]
    return TextScore(
        math.fsum(score.nats_sum for score in scores),
        sum(score.num_tokens for score in scores),
        sum(score.num_bytes for score in scores),
        None if None in kl else math.fsum(part for part in kl if part is not None),
    )


def relative_change(before: Tensor, after: Tensor) -> float | None:
    """‖W − W₀‖_F / ‖W₀‖_F in float32; None if W₀ is zero."""
    before, after = before.detach().float(), after.detach().float()
    norm = float(before.norm())
    return float((after - before).norm()) / norm if norm else None
