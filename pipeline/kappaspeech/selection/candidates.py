"""The candidates of a selection: parameters that could be trained, their order, and names that include or exclude them.

This module knows no checkpoint and no matrix: the scan's ranking makes the candidates, so the import points from there to here.
"""

from __future__ import annotations

import fnmatch
import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from kappaspeech.errors import SelectionError
from kappaspeech.expert_names import split_expert

Order = Literal["smallest", "largest", "random"]
# what is a candidate of a fused tensor: each of its experts, or all of them as one
Experts = Literal["each", "together"]


@dataclass(frozen=True)
class Candidate:
    """A parameter that could be trained, or one expert of a fused one. `score` is the value that it is ordered by (smaller is
    better conditioned), `kappa` its κ; both are infinite for a rank-deficient tensor. `aliases` are other names of the same
    storage."""

    name: str
    shape: tuple[int, ...]
    score: float
    kappa: float
    aliases: tuple[str, ...] = ()

    @property
    def num_parameters(self) -> int:
        return math.prod(self.shape)


class Ranking(Protocol):
    """A ranking as `select` needs it; `kappaspeech.scan.ranking.KappaRanking` is one."""

    @property
    def model(self) -> str: ...
    @property
    def checkpoint_digest(self) -> str: ...
    @property
    def digest(self) -> str: ...
    @property
    def gguf_architecture(self) -> str | None: ...
    def candidates(self, score: str, *, experts: Experts) -> list[Candidate]: ...


def module_type(name: str) -> str:
    """A parameter's type in its layer: "v_proj" of model.layers.3.self_attn.v_proj.weight, "mlp.0" of blocks.1.mlp.0.weight."""
    parts = split_expert(name)[0].removesuffix(".weight").split(".")
    return ".".join(parts[-2:]) if parts[-1].isdigit() else parts[-1]


def sort_candidates(candidates: Sequence[Candidate], *, order: Order, seed: int) -> list[Candidate]:
    """Candidates in the order in which a rule takes them; ties are broken by name."""
    if order == "random":
        return sorted(candidates, key=lambda item: hashlib.sha256(f"{seed}/{item.name}".encode()).digest())
    ascending = sorted(candidates, key=lambda item: (item.score, item.name))
    return ascending if order == "smallest" else ascending[::-1]


def filter_candidates(candidates: Sequence[Candidate], *, include: Sequence[str], exclude: Sequence[str]) -> list[Candidate]:
    """Candidates that a name or glob of `include` means, if there are any, and none of `exclude`; a tied one by any of its names,
    and an expert by its tensor's too.

    Raises `SelectionError` for a glob that matches nothing.
    """
    for glob in (*include, *exclude):
        if not any(_matches(candidate, glob) for candidate in candidates):
            raise SelectionError(f"{glob!r} matches no ranked tensor. Names and globs are compared with whole parameter names.")
    return [
        candidate
        for candidate in candidates
        if (not include or any(_matches(candidate, glob) for glob in include))
        and not any(_matches(candidate, glob) for glob in exclude)
    ]


def _matches(candidate: Candidate, glob: str) -> bool:
    names = [name for own in (candidate.name, *candidate.aliases) for name in (own, split_expert(own)[0])]
    return any(name == glob or fnmatch.fnmatchcase(name, glob) for name in names)
