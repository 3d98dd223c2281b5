"""The place of a matrix in its model: its tower, its layer and its module; and names short enough for a terminal."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

_LAYER = re.compile(r"^(.*?)\.([0-9]{1,6})\.(.+)$")
# an expert's number: in the middle of a name, or in brackets behind it; a number at the end is a module's own, as mlp.0
_NUMBER = re.compile(r"\.\d+(?=\.)|\[\d+\]$")


@dataclass(frozen=True)
class Place:
    """`tower` is all before the layer's number (`model.layers`, `encoder.blocks`), `module` all behind it, experts as one."""

    tower: str
    layer: int
    module: str


def find_place(name: str) -> Place | None:
    """The place of a tensor; None for one outside of the layers, as embeddings are."""
    match = _LAYER.match(name)
    if match is None:
        return None
    tower, layer, rest = match.groups()
    return Place(tower, int(layer), _NUMBER.sub("", _without_weight(rest)))


def _without_weight(name: str) -> str:
    return re.sub(r"\.weight(?=\[\d+\]$|$)", "", name)


def short_modules(modules: Iterable[str]) -> dict[str, str]:
    """Each module by its last word, or by as many as distinguish it from the others: `v_proj`, but `cross_attn.query`."""
    names = list(dict.fromkeys(modules))
    short: dict[str, str] = {}
    for name in names:
        words = name.split(".")
        ends = [".".join(words[-count:]) for count in range(2 if words[-1].isdigit() else 1, len(words) + 1)]
        others = [other for other in names if other != name]
        short[name] = next((end for end in ends if not any(f".{other}".endswith(f".{end}") for other in others)), name)
    return short


def short_names(names: Iterable[str]) -> Mapping[str, str]:
    """Each tensor's name without the words that its tower shares: `10.self_attn.v_proj`, with the tower's if there are
    several."""
    given = list(names)
    towers = {place.tower for name in given if (place := find_place(name)) is not None}
    word = {tower: tower.split(".")[0] if len({t.split(".")[0] for t in towers}) == len(towers) else tower for tower in towers}
    short: dict[str, str] = {}
    taken: dict[str, list[str]] = defaultdict(list)
    for name in given:
        match = _LAYER.match(name)
        if match is None:
            made = _without_weight(name).removeprefix("model.")
        else:
            start = "" if len(towers) == 1 else f"{word[match[1]]}."
            made = f"{start}{match[2]}.{_without_weight(match[3])}"
        short[name] = made
        taken[made].append(name)
    return {name: name if len(taken[made]) > 1 else made for name, made in short.items()}
