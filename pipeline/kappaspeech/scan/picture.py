"""A ranking at a glance: κ by layer and module, spectra of κ by module type, and the parameters that a count costs."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kappaspeech.artefacts import write_with
from kappaspeech.errors import InputError
from kappaspeech.escaping import for_picture
from kappaspeech.scan.ranking import KappaRanking
from kappaspeech.selection.candidates import Candidate, module_type

_LAYER = re.compile(r"\.([0-9]{1,6})\.")
_EXPERT = re.compile(r"\[\d+\]$")
_FORMATS = ("png", "svg", "pdf")
# more rows and lines than this nobody can tell apart
_MAX_TYPES = 40


def write_picture(ranking: KappaRanking, path: Path, *, score: str, selected: Sequence[str] = ()) -> None:
    """Draw `ranking` by `score`, with the tensors `selected` marked, as PNG, SVG or PDF by the name of `path`.

    Where the ranking has spectra, each module type's is drawn: the median over its matrices. Raises `InputError` for another
    format, and `SelectionError` for an unknown score.
    """
    kind = path.suffix.removeprefix(".")
    if kind not in _FORMATS:
        raise InputError(f"{path} is to be a picture; name it .{', .'.join(_FORMATS)}.")
    figure = _draw(ranking, score=score, selected=set(selected))
    # no date and no random ids: the same ranking gives the same bytes
    metadata = {"png": {"Software": None}, "svg": {"Date": None}, "pdf": {"CreationDate": None}}[kind]
    write_with(path, lambda temporary: figure.savefig(temporary, format=kind, metadata=metadata))


def _draw(ranking: KappaRanking, *, score: str, selected: set[str]) -> Any:
    import matplotlib as mpl
    from matplotlib.figure import Figure

    mpl.rcParams["svg.hashsalt"] = "kappaspeech"
    candidates = ranking.candidates(score)
    layered = [candidate for candidate in candidates if _LAYER.search(candidate.name)]
    types = Counter(module_type(candidate.name) for candidate in layered)
    kinds = sorted(kind for kind, _ in types.most_common(_MAX_TYPES))
    left_out = len(types) - len(kinds)
    layered = [candidate for candidate in layered if module_type(candidate.name) in kinds]
    figure = Figure(figsize=(14, 4.6), layout="constrained")
    heat, spread, cost = figure.subplots(1, 3, width_ratios=[2, 1, 1])
    if layered:
        _draw_layers(figure, heat, layered, kinds, score=score, selected=selected)
        if left_out:
            heat.set_xlabel(f"layer ({left_out} rarer types aren't drawn)")
    if ranking.spectra:
        _draw_spectra(spread, ranking.spectra, kinds)
    else:
        _draw_spread(spread, layered, kinds, score=score)
    _draw_cost(cost, candidates, num_selected=len(selected))
    return figure


def _draw_layers(
    figure: Any, axes: Any, layered: Sequence[Candidate], kinds: Sequence[str], *, score: str, selected: set[str]
) -> None:
    layers = sorted({_layer(candidate) for candidate in layered})
    values: NDArray[np.float64] = np.full((len(kinds), len(layers)), math.nan)
    for candidate in layered:
        place = kinds.index(module_type(candidate.name)), layers.index(_layer(candidate))
        values[place] = math.log10(candidate.score) if 0 < candidate.score < math.inf else math.nan
        if candidate.name in selected:
            axes.plot(place[1], place[0], "o", color="white", markersize=4, markeredgecolor="black", markeredgewidth=0.5)
    image = axes.imshow(values, aspect="auto", cmap="viridis", interpolation="nearest")
    axes.set_yticks(range(len(kinds)), [for_picture(kind) for kind in kinds])
    step = max(1, len(layers) // 12)
    axes.set_xticks(range(0, len(layers), step), [str(layer) for layer in layers[::step]])
    axes.set_xlabel("layer")
    axes.set_title(f"log₁₀ {score}; dots are selected", loc="left", fontsize=10)
    figure.colorbar(image, ax=axes)


def _draw_spread(axes: Any, layered: Sequence[Candidate], kinds: Sequence[str], *, score: str) -> None:
    for kind in kinds:
        scores = sorted(c.score for c in layered if module_type(c.name) == kind and 0 < c.score < math.inf)
        axes.plot(np.linspace(0, 1, len(scores)), scores, label=_label(kind), linewidth=1.2)
    axes.set_yscale("log")
    axes.set_xlabel("quantile within its type")
    axes.set_title(score, loc="left", fontsize=10)
    if kinds:
        axes.legend(fontsize=7)


def _draw_spectra(axes: Any, spectra: Mapping[str, NDArray[np.float32]], kinds: Sequence[str]) -> None:
    """Each type's median σᵢ/σ₁ over its matrices, at 200 places along the spectrum."""
    places = np.linspace(0, 1, 200)
    for kind in kinds:
        curves = [
            np.interp(places, np.linspace(0, 1, len(sigmas)), np.log10(np.maximum(sigmas / sigmas[0], 1e-12)))
            for name, sigmas in spectra.items()
            if _LAYER.search(name) and module_type(_EXPERT.sub("", name)) == kind and sigmas[0] > 0
        ]
        if curves:
            axes.plot(places, 10 ** np.median(curves, axis=0), label=_label(kind), linewidth=1.2)
    axes.set_yscale("log")
    axes.set_xlabel("place in the spectrum")
    axes.set_title("σᵢ/σ₁, median of a type", loc="left", fontsize=10)
    if kinds:
        axes.legend(fontsize=7)


def _draw_cost(axes: Any, candidates: Sequence[Candidate], *, num_selected: int) -> None:
    ordered = sorted(candidates, key=lambda candidate: (candidate.score, candidate.name))
    axes.plot(range(1, len(ordered) + 1), np.cumsum([candidate.num_parameters for candidate in ordered]) / 1e6, linewidth=1.2)
    if num_selected:
        axes.axvline(num_selected, color="grey", linewidth=0.8, linestyle="--")
    axes.set_xlabel("tensors, smallest first")
    axes.set_title("parameters, millions", loc="left", fontsize=10)


def _label(kind: str) -> str:
    # matplotlib leaves labels out of a legend that begin with an underscore
    return for_picture(f" {kind}" if kind.startswith("_") else kind)


def _layer(candidate: Candidate) -> int:
    match = _LAYER.search(candidate.name)
    assert match is not None
    return int(match[1])
