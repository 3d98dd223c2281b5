"""Instructions followed: prompts in batches of like length, and how often the answers obey, strictly and loosely, and how often
those of the base do.

N instructions
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import numpy as np

from kappaspeech.evaluation.bootstrap import FloatArray, compare_hits, interval, resampled_hits
from kappaspeech.evaluation.choice_items import digest_items
from kappaspeech.evaluation.instruction_checks import KINDS, Instruction

# Enough for what the demo asks for; an answer that goes on is cut there, so that a model that never ends costs no more.
MAX_ANSWER_TOKENS = 64


@dataclass(frozen=True)
class Prompt:
    """The place of an instruction among all, and the tokens after which its answer is written."""

    number: int
    ids: tuple[int, ...]


def cut_prompts(prompts: Sequence[Prompt], batch_size: int) -> list[list[Prompt]]:
    """Prompts in batches of like length, the longest first; a function of the prompts alone."""
    ordered = sorted(prompts, key=lambda prompt: (-len(prompt.ids), prompt.number))
    return [ordered[start : start + batch_size] for start in range(0, len(ordered), batch_size)]


def measure_instructions(items: Sequence[Instruction], answers: Sequence[str], base: Sequence[str] | None) -> dict[str, Any]:
    """The report on a language's instructions as JSON: the share of which every check is obeyed, strictly (`accuracy`) and
    loosely, with intervals over instructions; the shares of single checks; the same by kind of check.

    `base` has the base's shares, what `accuracy` and `loose_accuracy` are more than those, in pairs (`difference`, `interval`;
    `loose_difference`, `loose_interval`), the share whose obedience differs from it (`flipped`), and those of them that it alone
    follows (`lost`), or the trained model alone (`gained`). `followed` is by instruction, to compare two models in pairs. The
    four shares are IFEval's prompt- and instruction-level accuracies, strict and loose.
    """
    report = _measure(items, answers)
    hits_N, loose_N = np.array(report["followed"], dtype=np.float64), _follow(items, answers, loosely=True)
    found: dict[str, Any] = {
        "num_items": len(items),
        "num_checks": sum(len(item.checks) for item in items),
        **report,
        "accuracy_interval": list(interval(resampled_hits(hits_N))),
        "loose_interval": list(interval(resampled_hits(loose_N))),
        "base": None,
        "items_digest": digest_items(items),
        "answers": list(answers),
    }
    if base is not None:
        of_base = _measure(items, base)
        before_N = np.array(of_base.pop("followed"), dtype=np.float64)
        loosely = compare_hits(loose_N, _follow(items, base, loosely=True))
        found["base"] = {
            **of_base,
            "answers": list(base),
            **compare_hits(hits_N, before_N),
            **{f"loose_{name}": value for name, value in loosely.items()},
            "flipped": float((hits_N != before_N).mean()),
            "lost": float((before_N * (1 - hits_N)).mean()),
            "gained": float((hits_N * (1 - before_N)).mean()),
        }
    return found


def _measure(items: Sequence[Instruction], answers: Sequence[str]) -> dict[str, Any]:
    pairs = [(check, answer) for item, answer in zip(items, answers, strict=True) for check in item.checks]
    obeyed = [check.is_obeyed(answer) for check, answer in pairs]
    kinds = [name for name in KINDS if any(check.kind == name for check, _ in pairs)]
    followed_N = _follow(items, answers, loosely=False)
    return {
        "accuracy": float(followed_N.mean()),
        "loose_accuracy": float(_follow(items, answers, loosely=True).mean()),
        "check_accuracy": fmean(obeyed),
        "loose_check_accuracy": fmean(check.is_obeyed_loosely(answer) for check, answer in pairs),
        "kinds": {
            name: fmean(good for good, (check, _) in zip(obeyed, pairs, strict=True) if check.kind == name) for name in kinds
        },
        "followed": [bool(hit) for hit in followed_N],
    }


def _follow(items: Sequence[Instruction], answers: Sequence[str], *, loosely: bool) -> FloatArray:
    """1 for each instruction whose every check is obeyed, 0 for the others (N,)."""
    hits = [
        all(check.is_obeyed_loosely(answer) if loosely else check.is_obeyed(answer) for check in item.checks)
        for item, answer in zip(items, answers, strict=True)
    ]
    return np.array(hits, dtype=np.float64)
