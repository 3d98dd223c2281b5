"""A ranking becomes the set of tensors to train: by count, budget, threshold or quota, from either end or at random.

Knows no checkpoint and no matrix: it orders `Candidate`s, which `kappaspeech.scan.ranking` makes, so that the arrow points from
the scan to here.
"""

from __future__ import annotations

import fnmatch
import hashlib
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, Protocol

from pydantic import BaseModel, ConfigDict, Field

from kappaspeech.artefacts import read_json, write_json
from kappaspeech.errors import SelectionError
from kappaspeech.outside import explained

SCHEMA_VERSION = 1
Order = Literal["smallest", "largest", "random"]


@dataclass(frozen=True)
class Candidate:
    """A parameter that could be trained. `score` is what it is ordered by (smaller is better conditioned), `kappa` its κ;
    both are infinite for a rank-deficient tensor. `aliases` are other names of the same storage."""

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
    def candidates(self, score: str) -> list[Candidate]: ...


@dataclass(frozen=True)
class SelectedTensor:
    """One tensor to train, by its parameter's name in the model."""

    name: str
    shape: tuple[int, ...]
    kappa: float
    aliases: tuple[str, ...] = ()


@dataclass(frozen=True)
class TensorSelection:
    """The tensors to train, in the order that chose them, and the rule and inputs that they follow from."""

    rule: str
    model: str
    checkpoint_digest: str
    ranking_digest: str
    tensors: tuple[SelectedTensor, ...]

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(tensor.name for tensor in self.tensors)

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {tensor.name: tensor.shape for tensor in self.tensors}

    @property
    def num_parameters(self) -> int:
        """Scalars in all selected tensors; tied storage counts once."""
        return sum(math.prod(tensor.shape) for tensor in self.tensors)

    def write(self, path: Path) -> None:
        """Write `selection.json`, atomically."""
        write_json(
            path,
            {
                "schema_version": SCHEMA_VERSION,
                "rule": self.rule,
                "model": self.model,
                "checkpoint_digest": self.checkpoint_digest,
                "ranking_digest": self.ranking_digest,
                "num_parameters": self.num_parameters,
                "tensors": [
                    {
                        "name": tensor.name,
                        "shape": list(tensor.shape),
                        "kappa": tensor.kappa if math.isfinite(tensor.kappa) else None,
                        "aliases": list(tensor.aliases),
                    }
                    for tensor in self.tensors
                ],
            },
        )

    @staticmethod
    def read(path: Path) -> TensorSelection:
        """Read a `selection.json`. Raises `InputError` where it is missing or torn, `SelectionError` where it makes no sense."""
        content = read_json(path, schema_version=SCHEMA_VERSION)
        with explained(f"{path} is no selection", "Make it again with `kappaspeech select`.", kind=SelectionError):
            file = _SelectionFile.model_validate(content)
        selection = TensorSelection(
            rule=file.rule,
            model=file.model,
            checkpoint_digest=file.checkpoint_digest,
            ranking_digest=file.ranking_digest,
            tensors=tuple(
                SelectedTensor(
                    entry.name, tuple(entry.shape), math.inf if entry.kappa is None else entry.kappa, tuple(entry.aliases)
                )
                for entry in file.tensors
            ),
        )
        if len(set(selection.names)) != len(selection.tensors):
            raise SelectionError(f"{path} names a tensor twice. Make it again with `kappaspeech select`.")
        if content.get("num_parameters") != selection.num_parameters:
            raise SelectionError(
                f"{path} says num_parameters {content.get('num_parameters')!r}, but its shapes make "
                f"{selection.num_parameters}. It was edited by hand or torn: make it again with `kappaspeech select`."
            )
        return selection


class _TensorEntry(BaseModel):
    model_config = ConfigDict(strict=True, allow_inf_nan=False)

    name: str
    shape: Annotated[list[Annotated[int, Field(ge=0, lt=2**48)]], Field(max_length=64)]
    kappa: Annotated[float, Field(ge=0)] | None
    aliases: list[str] = []


class _SelectionFile(BaseModel):
    model_config = ConfigDict(strict=True)

    rule: str
    model: str
    checkpoint_digest: str
    ranking_digest: str
    tensors: list[_TensorEntry]


def select(
    ranking: Ranking,
    *,
    order: Order = "smallest",
    seed: int = 0,
    score: str = "kappa",
    count: int | None = None,
    budget: int | None = None,
    threshold: float | Literal["auto"] | None = None,
    quotas: Mapping[str, int] | None = None,
    match: TensorSelection | None = None,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
) -> TensorSelection:
    """Choose tensors of `ranking` by exactly one of these rules, taking them in `order` of `score`.

    `count`: so many. `budget`: as many parameters as fit, passing over a tensor that no longer fits. `threshold`: those on
    the order's side of that score («auto»: Otsu's split of log score). `quotas`: so many of each module type («v_proj»: 5),
    none of the others. `match`: as near as possible to the number of parameters of another selection, which the rule states.
    `include` and `exclude` are exact names or globs, applied first, to any name of a tied tensor. «random» shuffles by
    `seed`, the same on any machine. Raises `SelectionError` for a request that the ranking can't meet.
    """
    rules = {"count": count, "budget": budget, "threshold": threshold, "quotas": quotas or None, "match": match}
    given = [name for name, value in rules.items() if value is not None]
    if len(given) != 1:
        raise SelectionError(f"Give exactly one of {', '.join(rules)}; given: {', '.join(given) or 'none'}.")
    ordered = sort_candidates(_filter(ranking.candidates(score), include, exclude), order=order, seed=seed)
    if not ordered:
        raise SelectionError("No tensor is left to choose from. Loosen include and exclude.")
    by = f"{order} (seed {seed})" if order == "random" else f"{order} by {score}"
    if count is not None:
        chosen, what = _take_count(ordered, count), f"{count} {by}"
    elif budget is not None:
        chosen, what = _take_budget(ordered, budget), f"{by}, up to {budget} parameters"
    elif threshold is not None:
        chosen, what = _take_threshold(ordered, threshold, order=order, score=score)
    elif quotas:
        chosen = _take_quotas(ordered, quotas)
        what = f"{by}, " + ", ".join(f"{number} {kind}" for kind, number in sorted(quotas.items()))
    else:
        assert match is not None
        chosen = _take_nearest(ordered, match.num_parameters)
        total = sum(candidate.num_parameters for candidate in chosen)
        what = f"{by}, {total} parameters to match {match.num_parameters} ({total - match.num_parameters:+d})"
    filters = [f"{word} {', '.join(globs)}" for word, globs in (("only", include), ("without", exclude)) if globs]
    return TensorSelection(
        rule="; ".join([what, *filters]),
        model=ranking.model,
        checkpoint_digest=ranking.checkpoint_digest,
        ranking_digest=ranking.digest,
        tensors=tuple(SelectedTensor(item.name, item.shape, item.kappa, item.aliases) for item in chosen),
    )


def module_type(name: str) -> str:
    """A parameter's type in its layer: «v_proj» of model.layers.3.self_attn.v_proj.weight, «mlp.0» of blocks.1.mlp.0.weight."""
    parts = re.sub(r"\[\d+\]$", "", name).removesuffix(".weight").split(".")
    return ".".join(parts[-2:]) if parts[-1].isdigit() else parts[-1]


def sort_candidates(candidates: Sequence[Candidate], *, order: Order, seed: int) -> list[Candidate]:
    """Candidates in the order in which a rule takes them; ties are broken by name."""
    if order == "random":
        return sorted(candidates, key=lambda item: hashlib.sha256(f"{seed}/{item.name}".encode()).digest())
    ascending = sorted(candidates, key=lambda item: (item.score, item.name))
    return ascending if order == "smallest" else ascending[::-1]


def otsu_threshold(scores: Sequence[float]) -> float:
    """The score that best splits `scores` in two: greatest between-class variance of log score (Otsu 1979), exact.

    Lies half-way (in log) between the two classes. Scores that are infinite or not positive take no part. Raises
    `SelectionError` with fewer than two distinct ones.
    """
    logs = sorted(math.log(score) for score in scores if 0 < score < math.inf)
    if len(set(logs)) < 2:
        raise SelectionError("The automatic threshold needs two different finite scores. Give a number or a count.")
    total, below = math.fsum(logs), 0.0
    best, place = -1.0, 0.0
    for index in range(1, len(logs)):
        below += logs[index - 1]
        gap = below / index - (total - below) / (len(logs) - index)
        variance = index * (len(logs) - index) * gap * gap
        if logs[index] > logs[index - 1] and variance > best:
            best, place = variance, (logs[index] + logs[index - 1]) / 2
    return math.exp(place)


def _filter(candidates: Sequence[Candidate], include: Sequence[str], exclude: Sequence[str]) -> list[Candidate]:
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
    return any(name == glob or fnmatch.fnmatchcase(name, glob) for name in (candidate.name, *candidate.aliases))


def _take_count(ordered: Sequence[Candidate], count: int) -> list[Candidate]:
    if not 0 < count <= len(ordered):
        raise SelectionError(f"{count} tensors are asked for, and {len(ordered)} are there. Ask for 1 to {len(ordered)}.")
    return list(ordered[:count])


def _take_budget(ordered: Sequence[Candidate], budget: int) -> list[Candidate]:
    chosen, left = [], budget
    for candidate in ordered:
        if candidate.num_parameters <= left:
            chosen.append(candidate)
            left -= candidate.num_parameters
    if not chosen:
        smallest = min(candidate.num_parameters for candidate in ordered)
        raise SelectionError(f"No tensor fits into {budget} parameters; the smallest has {smallest}.")
    return chosen


def _take_threshold(
    ordered: Sequence[Candidate], threshold: float | Literal["auto"], *, order: Order, score: str
) -> tuple[list[Candidate], str]:
    if order == "random":
        raise SelectionError("A threshold has a smallest or a largest side, and no random one. Use a count or a budget.")
    limit = otsu_threshold([candidate.score for candidate in ordered]) if threshold == "auto" else threshold
    below = order == "smallest"
    chosen = [item for item in ordered if (item.score <= limit if below else item.score >= limit)]
    sign = "≤" if below else "≥"
    if not chosen:
        raise SelectionError(f"No tensor has {score} {sign} {limit:.6g}.")
    return chosen, f"{score} {sign} {limit:.6g}" + (" (Otsu)" if threshold == "auto" else "")


def _take_quotas(ordered: Sequence[Candidate], quotas: Mapping[str, int]) -> list[Candidate]:
    kinds = {module_type(candidate.name) for candidate in ordered}
    for kind, number in quotas.items():
        there = sum(module_type(candidate.name) == kind for candidate in ordered)
        if kind not in kinds:
            raise SelectionError(f"No module type {kind!r} is ranked. There are: {', '.join(sorted(kinds))}.")
        if not 0 < number <= there:
            raise SelectionError(f"{number} tensors of type {kind} are asked for, and {there} are there.")
    left = dict(quotas)
    chosen = []
    for candidate in ordered:
        kind = module_type(candidate.name)
        if left.get(kind, 0) > 0:
            left[kind] -= 1
            chosen.append(candidate)
    return chosen


def _take_nearest(ordered: Sequence[Candidate], target: int) -> list[Candidate]:
    """As `_take_budget`, then add, drop or exchange one tensor at a time while that comes nearer to `target`.

    Among equally near moves the one that disturbs the order least wins: it drops late tensors and adds early ones.
    """
    sizes = [candidate.num_parameters for candidate in ordered]
    taken = [False] * len(ordered)
    missing = target
    for place, size in enumerate(sizes):
        if size <= missing:
            taken[place] = True
            missing -= size
    while missing:
        # first tensor of each size that could be added, last of each size that could be dropped: no other can win
        adds = {sizes[place]: place for place in reversed(range(len(sizes))) if not taken[place]}
        drops = {sizes[place]: place for place in range(len(sizes)) if taken[place]}
        moves = [
            (abs(missing - add + drop), to_add, -to_drop)
            for add, to_add in [(0, -1), *adds.items()]
            for drop, to_drop in [(0, -1), *drops.items()]
        ]
        nearest, added, dropped = min(moves)
        if nearest >= abs(missing):
            break
        if added >= 0:
            taken[added] = True
            missing -= sizes[added]
        if -dropped >= 0:
            taken[-dropped] = False
            missing += sizes[-dropped]
    chosen = [candidate for candidate, is_taken in zip(ordered, taken, strict=True) if is_taken]
    if not chosen:
        raise SelectionError(f"Each of the tensors left has more than twice {target} parameters: none comes near it.")
    return chosen
