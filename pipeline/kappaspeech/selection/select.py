"""The choice of the tensors to train from a ranking."""

from __future__ import annotations

from collections.abc import Sequence

from kappaspeech.errors import SelectionError
from kappaspeech.selection.candidates import Experts, Order, Ranking, filter_candidates, sort_candidates
from kappaspeech.selection.rules import Ordered, Rule
from kappaspeech.selection.tensor_selection import SelectedTensor, TensorSelection


def select(
    ranking: Ranking,
    rule: Rule,
    *,
    order: Order = "smallest",
    seed: int = 0,
    score: str = "kappa",
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    experts: Experts = "each",
) -> TensorSelection:
    """Choose tensors of `ranking` by a rule, such as `Count(100)`, which takes them in `order` of `score`.

    `include` and `exclude` are exact names or globs, applied first, to any name of a tied tensor. "random" shuffles by `seed`,
    the same on any machine. Of fused experts each is a candidate, or with `experts` "together" all of a tensor are one, as LoRA
    and other tools need it. Raises `SelectionError` for a request that the ranking can't meet.
    """
    left = filter_candidates(ranking.candidates(score, experts=experts), include=include, exclude=exclude)
    if not left:
        raise SelectionError("No tensor is left to choose from. Loosen include and exclude.")
    chosen, what = rule.take(Ordered(sort_candidates(left, order=order, seed=seed), order, seed, score))
    filters = [f"{word} {', '.join(globs)}" for word, globs in (("only", include), ("without", exclude)) if globs]
    return TensorSelection(
        rule="; ".join([what, *filters]),
        model=ranking.model,
        checkpoint_digest=ranking.checkpoint_digest,
        ranking_digest=ranking.digest,
        tensors=tuple(SelectedTensor(item.name, item.shape, item.kappa, item.aliases) for item in chosen),
        gguf_architecture=ranking.gguf_architecture,
    )
