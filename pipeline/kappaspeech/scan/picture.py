"""A picture of a ranking: κ by layer and module of each tower, its spread or spectra by type, and the cost of a count."""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kappaspeech.artefacts import write_with
from kappaspeech.colours import INK, PALETTE, PAPER, SEQUENCE
from kappaspeech.errors import InputError
from kappaspeech.escaping import for_picture
from kappaspeech.expert_names import split_expert
from kappaspeech.scan.places import Place, find_place, short_modules
from kappaspeech.scan.ranking import KappaRanking
from kappaspeech.selection.candidates import Candidate

_FORMATS = ("png", "svg", "pdf")
# more rows, panels and lines than this are indistinguishable
_MAX_TYPES = 40
_MAX_TOWERS = 6
_MAX_LINES = 14


def write_picture(ranking: KappaRanking, path: Path, *, score: str, selected: Sequence[str] = ()) -> None:
    """Draw `ranking` by `score`, with the tensors `selected` marked, as PNG, SVG or PDF by the name of `path`.

    If the ranking has spectra, each module type's is drawn: the median over its matrices. Raises `InputError` for another format,
    and `SelectionError` for an unknown score.
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
    # of fused experts a selection names one, or the whole tensor
    selected = {item.name for item in candidates if selected.intersection((item.name, split_expert(item.name)[0]))}
    cells = [Cell(place, item) for item in candidates if (place := find_place(item.name)) is not None]
    towers = sorted({cell.place.tower for cell in cells}, key=lambda tower: (-sum(c.place.tower == tower for c in cells), tower))
    left_out = max(0, len(towers) - _MAX_TOWERS)
    towers = towers[:_MAX_TOWERS]
    kinds = {tower: _choose_modules([cell for cell in cells if cell.place.tower == tower]) for tower in towers}
    num_rows = sum(len(chosen) for chosen in kinds.values())
    height = max(5.0, 1.6 + 0.24 * num_rows + 0.9 * len(towers))
    figure = Figure(figsize=(14, height), layout="constrained", facecolor=PAPER)
    ratios = [len(kinds[tower]) + 2 for tower in towers] or [1]
    grid = figure.add_gridspec(len(ratios), 3, width_ratios=[2, 1, 1], height_ratios=ratios)
    by = "κ" if score == "kappa" else score
    figure.suptitle(for_picture(f"{ranking.model}: {by} of {len(ranking.matrices)} matrices"), x=0.01, ha="left", color=INK)
    limits = _limits(cells)
    for row, tower in enumerate(towers):
        axes = figure.add_subplot(grid[row, 0])
        chosen = [cell for cell in cells if cell.place.tower == tower and cell.place.module in kinds[tower]]
        _draw_tower(figure, axes, chosen, kinds[tower], by=by, tower=tower, limits=limits, selected=selected)
        missing = _say_missing(cells, tower, kinds[tower], num_towers=left_out if row == len(towers) - 1 else 0)
        axes.set_xlabel(f"layer{missing}")
    side = [figure.add_subplot(grid[:, column]) for column in (1, 2)]
    groups = _group(cells, towers, kinds)
    if ranking.spectra:
        _draw_spectra(side[0], ranking.spectra, groups)
    else:
        _draw_spread(side[0], groups, by=by)
    _draw_cost(side[1], candidates, num_selected=len(selected))
    return figure


@dataclass(frozen=True)
class Cell:
    """A matrix in its place; a layer's experts share a cell."""

    place: Place
    candidate: Candidate


def _choose_modules(cells: Sequence[Cell]) -> list[str]:
    """A tower's modules that are drawn, in order of name: the `_MAX_TYPES` commonest."""
    return sorted(module for module, _ in Counter(cell.place.module for cell in cells).most_common(_MAX_TYPES))


def _say_missing(cells: Sequence[Cell], tower: str, drawn: Sequence[str], *, num_towers: int) -> str:
    """A remark in brackets on the parts of a tower, and below the last one of the model, that aren't drawn; "" if all are."""
    num_modules = len({cell.place.module for cell in cells if cell.place.tower == tower}) - len(drawn)
    counts = [f"{number} more {what}" for number, what in ((num_modules, "modules"), (num_towers, "towers")) if number]
    return f" ({' and '.join(counts)} aren't drawn)" if counts else ""


def _limits(cells: Sequence[Cell]) -> tuple[float, float]:
    """The least and the greatest log₁₀ of a finite score: one scale for all towers."""
    logs = [math.log10(c.candidate.score) for c in cells if 0 < c.candidate.score < math.inf] or [0.0]
    return min(logs), max(logs)


def _draw_tower(
    figure: Any,
    axes: Any,
    cells: Sequence[Cell],
    modules: Sequence[str],
    *,
    by: str,
    tower: str,
    limits: tuple[float, float],
    selected: set[str],
) -> None:
    """Draw modules by layers. A cell of several experts shows their median, and a dot if one of them is selected."""
    from matplotlib.colors import LinearSegmentedColormap

    layers = sorted({cell.place.layer for cell in cells})
    found: dict[tuple[int, int], list[float]] = {}
    for cell in cells:
        place = modules.index(cell.place.module), layers.index(cell.place.layer)
        if 0 < cell.candidate.score < math.inf:
            found.setdefault(place, []).append(math.log10(cell.candidate.score))
        if cell.candidate.name in selected:
            axes.plot(place[1], place[0], "o", color=PALETTE[1][0], markersize=4.5, markeredgecolor=PAPER, markeredgewidth=0.7)
    values: NDArray[np.float64] = np.full((len(modules), len(layers)), math.nan)
    for place, logs in found.items():
        values[place] = statistics.median(logs)
    colours = LinearSegmentedColormap.from_list("kappaspeech", SEQUENCE)
    image = axes.imshow(values, aspect="auto", cmap=colours, interpolation="nearest", vmin=limits[0], vmax=limits[1])
    short = short_modules(modules)
    axes.set_yticks(range(len(modules)), [for_picture(short[module]) for module in modules])
    step = max(1, len(layers) // 12)
    axes.set_xticks(range(0, len(layers), step), [str(layer) for layer in layers[::step]])
    num_experts = max(map(len, found.values()), default=1)
    several = f", median of {num_experts} experts" if num_experts > 1 else ""
    title = f"{for_picture(tower)}: log₁₀ {by}{several}" + ("; dots are selected" if selected else "")
    axes.set_title(title, loc="left", fontsize=10, color=INK)
    figure.colorbar(image, ax=axes, label=f"log₁₀ {by}")


def _group(cells: Sequence[Cell], towers: Sequence[str], kinds: Mapping[str, Sequence[str]]) -> dict[str, list[Candidate]]:
    """Candidates by the meaning of a line of the middle panel: a module, with its tower's first word if there are several."""
    groups: dict[str, list[Candidate]] = {}
    for tower in towers:
        short = short_modules(kinds[tower])
        start = f"{tower.split('.')[0]} " if len(towers) > 1 else ""
        for cell in cells:
            if cell.place.tower == tower and cell.place.module in short:
                groups.setdefault(f"{start}{short[cell.place.module]}", []).append(cell.candidate)
    return groups


def _style(number: int) -> dict[str, Any]:
    """Distinguishable colours, and another dash once all have been used."""
    dash = ("-", "--", ":", "-.")[number // len(PALETTE) % 4]
    return {"color": PALETTE[number % len(PALETTE)][0], "linestyle": dash, "linewidth": 1.4}


def _draw_spread(axes: Any, groups: Mapping[str, Sequence[Candidate]], *, by: str) -> None:
    for number, (kind, members) in enumerate(sorted(groups.items())[:_MAX_LINES]):
        scores = sorted(item.score for item in members if 0 < item.score < math.inf)
        axes.plot(np.linspace(0, 1, len(scores)), scores, label=_label(kind), **_style(number))
    axes.set_yscale("log")
    axes.set_xlabel("quantile within its type")
    axes.set_title(by, loc="left", fontsize=10, color=INK)
    _draw_legend(axes, len(groups))


def _draw_spectra(axes: Any, spectra: Mapping[str, NDArray[np.float32]], groups: Mapping[str, Sequence[Candidate]]) -> None:
    """Draw each type's median σᵢ/σ₁ over its matrices, at 200 places along the spectrum."""
    places = np.linspace(0, 1, 200)
    for number, (kind, members) in enumerate(sorted(groups.items())[:_MAX_LINES]):
        names = {item.name for item in members}
        curves = [
            np.interp(places, np.linspace(0, 1, len(sigmas)), np.log10(np.maximum(sigmas / sigmas[0], 1e-12)))
            for name, sigmas in spectra.items()
            if name in names and sigmas[0] > 0
        ]
        if curves:
            axes.plot(places, 10 ** np.median(curves, axis=0), label=_label(kind), **_style(number))
    axes.set_yscale("log")
    axes.set_xlabel("place in the spectrum")
    axes.set_title("σᵢ/σ₁, median of a type", loc="left", fontsize=10, color=INK)
    _draw_legend(axes, len(groups))


def _draw_legend(axes: Any, num_groups: int) -> None:
    """Draw the legend below the axes, so that no line runs through it."""
    if not axes.lines:
        return
    left_out = num_groups - len(axes.lines)
    title = f"{left_out} more types aren't drawn" if left_out > 0 else None
    axes.legend(fontsize=9, ncols=2, frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.12), title=title)


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
