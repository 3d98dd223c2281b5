"""Multiple choice: the choices that an LLM finds likeliest, how often they are right, and how often others than the base's.

R rows · L tokens · K foretold tokens · V vocabulary · N items
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kappaspeech.errors import TrainingError
from kappaspeech.evaluation.bootstrap import FloatArray, compare_hits, interval, resampled_hits
from kappaspeech.evaluation.choice_items import Item, Row, digest_items
from kappaspeech.model.text_rows import pad_texts

Likelihoods = Mapping[int, float]


@torch.no_grad()
def score_batches(llm: Any, batches: Sequence[Sequence[Row]]) -> Likelihoods:
    """Σ log p of the tokens of each choice in the batches, in nats, by the choice's number."""
    device = llm.get_input_embeddings().weight.device
    found: dict[int, float] = {}
    for rows in batches:
        # padding is at the right, where a causal model doesn't look
        ids_RL = pad_texts([row.ids for row in rows]).clamp(min=0).to(device)
        logits_RLV = llm(input_ids=ids_RL, use_cache=False).logits
        choices = [(row, item) for row, content in enumerate(rows) for item in content.foretold]
        if not choices:
            continue
        rows_K = torch.tensor([row for row, item in choices for _ in item.tokens])
        positions_K = torch.tensor([item.start + place for _, item in choices for place in range(len(item.tokens))])
        tokens_K = torch.tensor([token for _, item in choices for token in item.tokens], device=device)
        logs_K = _log_p(logits_RLV[rows_K.to(device), positions_K.to(device)], tokens_K)
        first = 0
        for _, item in choices:
            found[item.choice] = float(logs_K[first : first + len(item.tokens)].sum())
            first += len(item.tokens)
    return found


def _log_p(logits_KV: Tensor, tokens_K: Tensor) -> Tensor:
    logs_KV = logits_KV.float().log_softmax(dim=-1)
    return logs_KV.gather(1, tokens_K[:, None])[:, 0].double().cpu()


@dataclass(frozen=True)
class Picked:
    """The index of the likeliest choice of each item, and of the likeliest per character."""

    plain: tuple[int, ...]
    normalised: tuple[int, ...]


def pick(items: Sequence[Item], likelihoods: Likelihoods) -> Picked:
    """The choices of largest Σ log p, and of largest Σ log p / characters: of `acc` and `acc_norm` in lm-evaluation-harness. Of
    equal ones the first. Raises `TrainingError` if one is no number."""
    if any(map(math.isnan, likelihoods.values())):
        raise TrainingError(
            "A choice of data.tasks has no likelihood (NaN): the LLM gives no numbers any more. Go back to an earlier "
            "checkpoint, or train again with a smaller optimizer.llm_learning_rate."
        )
    plain, normalised, first = [], [], 0
    for item in items:
        nats = [likelihoods[first + index] for index in range(len(item.choices))]
        plain.append(int(np.argmax(nats)))
        normalised.append(int(np.argmax([value / len(text) for value, text in zip(nats, item.choices, strict=True)])))
        first += len(item.choices)
    return Picked(tuple(plain), tuple(normalised))


def measure_choices(items: Sequence[Item], picked: Picked, base: Picked | None) -> dict[str, Any]:
    """The report on a language's items as JSON: accuracy, plain and normalised, with intervals over items; the same by group.

    `base` has the base's accuracies, what these are more than those, in pairs (`difference`, `interval`;
    `normalised_difference`, `normalised_interval`), the share of items that it answers otherwise (`flipped`), and those of them
    that it alone has right (`lost`), or the trained model alone (`gained`). `picked` and `right` are by item, to compare two
    models in pairs.
    """
    groups = list(dict.fromkeys(item.group for item in items))
    report = _measure(items, picked, base)
    if base is not None:
        report["base"] |= compare_hits(_hits(items, picked.plain), _hits(items, base.plain))
        by_length = compare_hits(_hits(items, picked.normalised), _hits(items, base.normalised))
        report["base"] |= {f"normalised_{name}": value for name, value in by_length.items()}
    return {
        **report,
        "accuracy_interval": list(interval(resampled_hits(_hits(items, picked.plain)))),
        "normalised_interval": list(interval(resampled_hits(_hits(items, picked.normalised)))),
        "groups": {group: _measure(*_of_group(group, items, picked, base)) for group in groups} if groups != [""] else {},
        "items_digest": digest_items(items),
        "right": [item.answer for item in items],
        "picked": list(picked.plain),
    }


def _measure(items: Sequence[Item], picked: Picked, base: Picked | None) -> dict[str, Any]:
    hits_N = _hits(items, picked.plain)
    report: dict[str, Any] = {
        "num_items": len(items),
        "chance": fmean(1 / len(item.choices) for item in items),
        "accuracy": float(hits_N.mean()),
        "normalised_accuracy": float(_hits(items, picked.normalised).mean()),
        "base": None,
    }
    if base is not None:
        before_N, flipped_N = _hits(items, base.plain), np.not_equal(picked.plain, base.plain)
        report["base"] = {
            "accuracy": float(before_N.mean()),
            "normalised_accuracy": float(_hits(items, base.normalised).mean()),
            "flipped": float(flipped_N.mean()),
            "lost": float((before_N * (1 - hits_N)).mean()),
            "gained": float((hits_N * (1 - before_N)).mean()),
        }
    return report


def _of_group(group: str, items: Sequence[Item], picked: Picked, base: Picked | None) -> tuple[list[Item], Picked, Picked | None]:
    chosen = [index for index, item in enumerate(items) if item.group == group]

    def part(of: Picked) -> Picked:
        return Picked(tuple(of.plain[index] for index in chosen), tuple(of.normalised[index] for index in chosen))

    return [items[index] for index in chosen], part(picked), None if base is None else part(base)


def _hits(items: Sequence[Item], picked: Sequence[int]) -> FloatArray:
    return np.array([item.answer == index for item, index in zip(items, picked, strict=True)], dtype=np.float64)
