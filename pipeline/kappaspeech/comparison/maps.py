"""Maps of the tensors that arms unfreeze, layer by module, and of how far these have moved."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import fmean
from typing import Any

from kappaspeech.colours import FAINT, GRID, INK
from kappaspeech.comparison.runs import Arm, RunSummary
from kappaspeech.comparison.theme import Style
from kappaspeech.escaping import for_picture
from kappaspeech.scan.places import find_place
from kappaspeech.selection.candidates import module_type

_NUM_TICKS = 8


def draw_map(figure: Any, arms: Sequence[Arm]) -> None:
    """Draw a grid of layers by modules for each arm: a cell is full if every seed unfreezes the tensor, paler if some do."""
    names = {name for arm in arms for run in arm.runs for name in run.llm_names}
    chosen = {name for arm in arms for run in arm.runs for name in run.trained_names}
    kinds = sorted({module_type(name) for name in chosen if find_place(name)})
    layers = sorted({_layer(name) for name in names if find_place(name)})
    grids = figure.subplots(len(arms), 1, squeeze=False, sharex=True)[:, 0]
    for axes, (number, arm) in zip(grids, enumerate(arms), strict=True):
        _draw_grid(axes, Style(number, arm.name), arm, kinds, layers)
    grids[-1].set_xlabel("layer")


def _draw_grid(axes: Any, style: Style, arm: Arm, kinds: Sequence[str], layers: Sequence[int]) -> None:
    from matplotlib.patches import Rectangle

    counts: dict[tuple[int, str], int] = {}
    outside: set[str] = set()
    for run in arm.runs:
        for name in run.trained_names:
            if find_place(name):
                place = _layer(name), module_type(name)
                counts[place] = counts.get(place, 0) + 1
            else:
                outside.add(name)
    for column, layer in enumerate(layers):
        for row, kind in enumerate(kinds):
            share = min(counts.get((layer, kind), 0) / len(arm.runs), 1.0)
            cell = Rectangle((column - 0.44, row - 0.42), 0.88, 0.84, facecolor=GRID, alpha=0.55, linewidth=0)
            axes.add_patch(cell)
            if share:
                mark = Rectangle((column - 0.44, row - 0.42), 0.88, 0.84, facecolor=style.colour, alpha=share, linewidth=0)
                axes.add_patch(mark)
    axes.set_xlim(-0.6, len(layers) - 0.4)
    axes.set_ylim(len(kinds) - 0.4, -0.6)
    axes.set_yticks(range(len(kinds)), list(map(for_picture, kinds)), fontsize=9)
    step = max(1, len(layers) // _NUM_TICKS)
    axes.set_xticks(range(0, len(layers), step), [str(layer) for layer in layers[::step]])
    axes.grid(visible=False)
    axes.tick_params(length=0)
    for side in ("left", "bottom"):
        axes.spines[side].set_visible(False)
    named = [name.removesuffix(".weight").rsplit(".", 1)[-1] for name in sorted(outside)]
    more = f" + {for_picture(named[0]) if len(named) == 1 else f'{len(named)} outside of the layers'}" if named else ""
    number = fmean(len(run.trained_names) for run in arm.runs)
    # the tensors outside the layers have no place in the grid: they are named
    axes.set_title(f"{style.label}: {number:.0f} tensors{more}", color=style.colour)


def draw_drift(axes: Any, arms: Sequence[Arm]) -> None:
    """Draw how far each matrix that trained has moved against its κ, the mean over the seeds that trained it."""
    _draw_matrices(axes, arms, lambda run, name: run.drift.get(name, 0.0))
    axes.set_xlabel("κ before training")
    axes.set_title("Drift ‖W − W₀‖ / ‖W₀‖ of each trained matrix")


def draw_kappas(axes: Any, arms: Sequence[Arm]) -> None:
    """Draw by what training multiplied the κ of each matrix that trained."""
    _draw_matrices(axes, arms, lambda run, name: run.kappas[name][1] / run.kappas[name][0])
    if axes.get_lines():
        axes.axhline(1, color=FAINT, linewidth=0.8, zorder=0)
    axes.set_xlabel("κ before training")
    axes.set_title("κ after training / κ before")


def _draw_matrices(axes: Any, arms: Sequence[Arm], value: Callable[[RunSummary, str], float]) -> None:
    for number, arm in enumerate(arms):
        style = Style(number, arm.name)
        found: dict[str, list[float]] = {}
        before: dict[str, float] = {}
        for run in arm.runs:
            for name, (kappa, _) in run.kappas.items():
                if value(run, name) > 0:
                    found.setdefault(name, []).append(value(run, name))
                    before[name] = kappa
        if found:
            xs, ys = zip(*((before[name], fmean(values)) for name, values in sorted(found.items())), strict=True)
            (dots,) = axes.plot(xs, ys, style.marker, color=style.colour, alpha=0.75, markeredgewidth=0, label=style.label)
            style.mark(dots)
    if not axes.get_lines():
        axes.text(0.5, 0.5, "no matrix of the LLM was trained", transform=axes.transAxes, ha="center", color=FAINT)
        return
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.legend(frameon=False, fontsize=9, labelcolor=INK)


def _layer(name: str) -> int:
    place = find_place(name)
    assert place is not None
    return place.layer
