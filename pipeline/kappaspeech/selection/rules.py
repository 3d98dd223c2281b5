"""The rules of a selection, as values: the number of tensors taken of those that an order puts first.

`RULES` lists them for `kappaspeech select`. A rule of your own is a frozen class with `take` here and an entry there.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

from kappaspeech.errors import InputError, SelectionError
from kappaspeech.selection.candidates import Candidate, Order, module_type
from kappaspeech.selection.nearest import take_nearest
from kappaspeech.selection.otsu import otsu_threshold

_FACTORS = {"": 1, "k": 1_000, "m": 1_000_000, "b": 1_000_000_000}
# a comma precedes three digits each time: in 1,5B it is a decimal comma, which isn't read
_BUDGET = re.compile(r"\+?((?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9][0-9_]*)(?:\.[0-9]+)?(?:e[0-9]{1,2})?)([kmb]?)")


@dataclass(frozen=True)
class Ordered:
    """Candidates in the order in which a rule takes them, and the name of the score that orders them."""

    candidates: Sequence[Candidate]
    order: Order
    seed: int
    score: str

    @property
    def by(self) -> str:
        return f"random (seed {self.seed})" if self.order == "random" else f"{self.order} by {self.score}"


class Rule(Protocol):
    """A rule for how many are taken."""

    def take(self, ordered: Ordered) -> tuple[list[Candidate], str]:
        """The chosen candidates, and the rule in words. Raises `SelectionError` if it can't be met."""


@dataclass(frozen=True)
class Count:
    """A given number of tensors."""

    num_tensors: int

    def take(self, ordered: Ordered) -> tuple[list[Candidate], str]:
        there = len(ordered.candidates)
        if not 0 < self.num_tensors <= there:
            raise SelectionError(f"{self.num_tensors} tensors are asked for, and {there} are there. Ask for 1 to {there}.")
        return list(ordered.candidates[: self.num_tensors]), f"{self.num_tensors} {ordered.by}"


@dataclass(frozen=True)
class Fraction:
    """A share of the candidates, rounded down, but one at least: `top_p` of PEFT's KappaTuneSelector."""

    share: float

    def take(self, ordered: Ordered) -> tuple[list[Candidate], str]:
        there = len(ordered.candidates)
        number = _number_of(self.share, there, option="--fraction")
        return list(ordered.candidates[:number]), f"{number} {ordered.by}, a share of {self.share:g} of {there}"


@dataclass(frozen=True)
class TypeFraction:
    """A share of the candidates of each module type, rounded down, but one at least of each.

    Both ends of a score then have as many tensors of each type. A type of a single tensor is in both.
    """

    share: float

    def take(self, ordered: Ordered) -> tuple[list[Candidate], str]:
        there = Counter(module_type(candidate.name) for candidate in ordered.candidates)
        numbers = {kind: _number_of(self.share, number, option="--type-fraction") for kind, number in there.items()}
        chosen, _ = Quotas(numbers).take(ordered)
        return chosen, f"{len(chosen)} {ordered.by}, a share of {self.share:g} of each module type"


@dataclass(frozen=True)
class Budget:
    """As many parameters as fit into `num_parameters`, passing over a tensor that no longer fits."""

    num_parameters: int

    def take(self, ordered: Ordered) -> tuple[list[Candidate], str]:
        chosen, left = [], self.num_parameters
        for candidate in ordered.candidates:
            if candidate.num_parameters <= left:
                chosen.append(candidate)
                left -= candidate.num_parameters
        if not chosen:
            smallest = min(candidate.num_parameters for candidate in ordered.candidates)
            raise SelectionError(f"No tensor fits into {self.num_parameters} parameters; the smallest has {smallest}.")
        return chosen, f"{ordered.by}, up to {self.num_parameters} parameters"


@dataclass(frozen=True)
class Threshold:
    """Candidates on the order's side of `limit`; "auto": of Otsu's split of log score."""

    limit: float | Literal["auto"]

    def take(self, ordered: Ordered) -> tuple[list[Candidate], str]:
        if ordered.order == "random":
            raise SelectionError("A threshold has a smallest or a largest side, and no random one. Use a count or a budget.")
        candidates = ordered.candidates
        limit = otsu_threshold([candidate.score for candidate in candidates]) if self.limit == "auto" else self.limit
        below = ordered.order == "smallest"
        chosen = [item for item in candidates if (item.score <= limit if below else item.score >= limit)]
        what = f"{ordered.score} {'≤' if below else '≥'} {limit:.6g}"
        if not chosen:
            raise SelectionError(f"No tensor has {what}.")
        return chosen, what + (" (Otsu)" if self.limit == "auto" else "")


@dataclass(frozen=True)
class Quotas:
    """A given number of each module type ("v_proj": 5), and none of the others."""

    of: Mapping[str, int]

    def take(self, ordered: Ordered) -> tuple[list[Candidate], str]:
        kinds = [module_type(candidate.name) for candidate in ordered.candidates]
        for kind, number in self.of.items():
            if kind not in kinds:
                raise SelectionError(f"No module type {kind!r} is ranked. There are: {', '.join(sorted(set(kinds)))}.")
            if not 0 < number <= kinds.count(kind):
                raise SelectionError(f"{number} tensors of type {kind} are asked for, and {kinds.count(kind)} are there.")
        left = dict(self.of)
        chosen = []
        for candidate, kind in zip(ordered.candidates, kinds, strict=True):
            if left.get(kind, 0) > 0:
                left[kind] -= 1
                chosen.append(candidate)
        return chosen, f"{ordered.by}, " + ", ".join(f"{number} {kind}" for kind, number in sorted(self.of.items()))


@dataclass(frozen=True)
class Nearest:
    """As near as possible to `num_parameters`, which another selection has, so that only the choice differs."""

    num_parameters: int

    def take(self, ordered: Ordered) -> tuple[list[Candidate], str]:
        chosen = take_nearest(ordered.candidates, self.num_parameters)
        total = sum(candidate.num_parameters for candidate in chosen)
        difference = total - self.num_parameters
        return chosen, f"{ordered.by}, {total} parameters to match {self.num_parameters} ({difference:+d})"


def _number_of(share: float, there: int, *, option: str) -> int:
    """The number of tensors that a share of those that are there has, one at least."""
    if not 0 < share <= 1:
        raise SelectionError(f"{option} is {share:g}; give a share of the tensors, above 0 and up to 1: 0.2.")
    # the product as PEFT rounds it
    return max(1, int(there * share))


@dataclass(frozen=True)
class RuleOption:
    """A rule as an option of the command: its name, the type and meaning of its value, and the rule that the value makes."""

    name: str
    kind: Any
    help: str
    make: Callable[[Any], Rule]


def _read_budget(text: str) -> Budget:
    match = _BUDGET.fullmatch(text.strip().lower())
    number = 0 if match is None else round(float(re.sub("[_,]", "", match[1])) * _FACTORS[match[2]])
    if number < 1:
        raise InputError(f"--budget is {text!r}; give a number of parameters from 1 on, as in 20000000, 20,000,000, 20M or 1.5B.")
    return Budget(number)


def _read_threshold(text: str) -> Threshold:
    if text == "auto":
        return Threshold("auto")
    try:
        return Threshold(float(text))
    except ValueError:
        raise InputError(f"--threshold is {text!r}; give a number or auto.") from None


def _read_quotas(pairs: Sequence[str]) -> Quotas:
    quotas: dict[str, int] = {}
    for pair in pairs:
        kind, _, number = pair.rpartition("=")
        if not kind or not number.isdecimal():
            raise InputError(f"--quota is {pair!r}; give a module type and a number, as in v_proj=10.")
        if kind in quotas:
            raise InputError(f"--quota gives {kind} twice: {quotas[kind]} and {number}. Give one number of each type.")
        quotas[kind] = int(number)
    return Quotas(quotas)


def _read_size(path: Path) -> Nearest:
    from kappaspeech.selection.tensor_selection import TensorSelection

    return Nearest(TensorSelection.read(path).num_parameters)


RULES = (
    RuleOption("count", int, "Number of tensors.", Count),
    RuleOption("fraction", float, "Share of the tensors that may be chosen: 0.2. It is PEFT KappaTune's top_p.", Fraction),
    RuleOption("type_fraction", float, "Share of the tensors of each module type, one of each at least: 0.5.", TypeFraction),
    RuleOption("budget", str, "Number of parameters that the tensors may have together: 20000000, 20M or 1.5B.", _read_budget),
    RuleOption(
        "threshold", str, "All tensors up to this score (with --largest, from it on); auto finds it (Otsu).", _read_threshold
    ),
    RuleOption("quota", list[str], "Number of tensors of a module type: v_proj=10. May be repeated.", _read_quotas),
    RuleOption("match_budget", Path, "Another selection, whose number of parameters is matched.", _read_size),
)
