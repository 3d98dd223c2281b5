"""Draw docs/overview.png: python docs/overview.py RANKING, a ranking of SmolLM2-135M-Instruct by `kappaspeech scan`.

On the left κ of its tensors with the 100 smallest marked; on the right what three selections of 100 tensors led to, by
benchmarks/results/real_speech.json.
"""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np

from kappaspeech.colours import PALETTE
from kappaspeech.comparison.theme import themed
from kappaspeech.scan.places import find_place
from kappaspeech.scan.ranking import KappaRanking
from kappaspeech.selection.candidates import module_type
from kappaspeech.selection.rules import Count
from kappaspeech.selection.select import select

REPOSITORY = Path(__file__).parents[1]
NUM_TENSORS = 100


def draw(ranking: KappaRanking, record: dict[str, Any], path: Path) -> None:
    """Both halves, as a PNG."""
    from matplotlib.figure import Figure

    with themed("overview"):
        figure = Figure(figsize=(12, 4.2), layout="constrained")
        heat, trade = figure.subplots(1, 2, width_ratios=[1.5, 1])
        draw_heat(figure, heat, ranking)
        draw_trade(trade, record)
        figure.savefig(path, dpi=110, metadata={"Software": None})


def draw_heat(figure: Any, axes: Any, ranking: KappaRanking) -> None:
    """κ by module and layer, with the tensors of smallest κ marked."""
    selected = set(select(ranking, Count(NUM_TENSORS)).names)
    layered = [(candidate, find_place(candidate.name)) for candidate in ranking.candidates("kappa")]
    places = {candidate.name: (module_type(candidate.name), found.layer) for candidate, found in layered if found}
    kinds = sorted({kind for kind, _ in places.values()})
    values = np.full((len(kinds), 1 + max(layer for _, layer in places.values())), math.nan)
    for candidate, _ in layered:
        if candidate.name in places:
            kind, layer = places[candidate.name]
            values[kinds.index(kind), layer] = math.log10(candidate.kappa)
            if candidate.name in selected:
                axes.plot(
                    layer, kinds.index(kind), "o", color="white", markersize=5, markeredgecolor="black", markeredgewidth=0.6
                )
    image = axes.imshow(values, aspect="auto", cmap="viridis", interpolation="nearest")
    axes.set_yticks(range(len(kinds)), kinds)
    axes.set_xlabel("layer")
    axes.grid(visible=False)
    axes.set_title(f"SmolLM2-135M: log₁₀ κ; dots: the {NUM_TENSORS} smallest", loc="left", fontsize=11)
    figure.colorbar(image, ax=axes)


def draw_trade(axes: Any, record: dict[str, Any]) -> None:
    """WER against the perplexity of text: a small mark a seed, a large one their mean."""
    for number, arm in enumerate(record["arms"]):
        colour = PALETTE[number][0]
        forgetting, wer = arm["text"]["en"]["perplexity"], arm["wer"]["languages"]["generated"]
        axes.plot(forgetting["by_seed"], [100 * rate for rate in wer["by_seed"]], "o", color=colour, markersize=5, alpha=0.5)
        axes.plot(forgetting["mean"], 100 * wer["mean"], "o", color=colour, markersize=10)
        axes.annotate(arm["arm"], (forgetting["mean"], 100 * wer["mean"]), (9, 6), textcoords="offset points", color=colour)
    before = record["arms"][0]["text"]["en"]["perplexity_before"]["mean"]
    axes.axvline(before, color="grey", linewidth=0.8, linestyle="--")
    axes.annotate("before training", (before, 31), (4, 0), textcoords="offset points", fontsize=8, color="grey", va="top")
    axes.set_xlim(before - 4, 140)
    axes.set_ylim(0, 32)
    axes.set_xlabel("perplexity of English text")
    axes.set_ylabel("WER, %")
    axes.set_title("WER against forgetting, by seed", loc="left", fontsize=11)


if __name__ == "__main__":
    results = json.loads((REPOSITORY / "benchmarks/results/real_speech.json").read_text(encoding="utf-8"))
    draw(KappaRanking.read(Path(sys.argv[1])), results, REPOSITORY / "docs/overview.png")
