"""The style of the report's drawings: colours that the colour-blind can tell apart, labels at the lines, light and dark."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any

from kappaspeech.artefacts import write_with
from kappaspeech.colours import FAINT, GRID, INK, PALETTE, PAPER
from kappaspeech.escaping import for_picture

MARKERS = ("o", "s", "^", "D", "v", "P", "X")
# of the arms of each round of colours: matplotlib's line, and the share of a sign on the page that is coloured
_ROUNDS = (("-", 1.0), ("--", 0.6), (":", 0.3), ("-.", 0.8))
_DARK = {"ink": "#eceef0", "faint": "#a3abb3", "grid": "#33383d", "paper": "#16181a"}
# The page's variables for the colours of a drawing, so that one drawing serves on light and on dark.
_VARIABLES: Mapping[str, str] = {
    **{light: f"arm-{number}" for number, (light, _) in enumerate(PALETTE)},
    **{INK: "ink", FAINT: "faint", GRID: "grid", PAPER: "paper"},
}
# The least distance between two labels, as a share of a drawing's height.
_LABEL_GAP = 0.075
# The room that a sign of a name takes, as a share of a drawing's width.
_SIGN_WIDTH = 0.016
_NUM_TICKS = 5
_DECADE = 10.0


@dataclass(frozen=True)
class Style:
    """One arm's colour, marker, line and label: arms of one colour have other markers and other lines."""

    number: int
    name: str

    @property
    def label(self) -> str:
        """The name as a drawing writes it: matplotlib reads dollars as mathematics, and leaves "_…" out of legends."""
        text = for_picture(self.name)
        return f" {text}" if text.startswith("_") else text

    @property
    def colour(self) -> str:
        return PALETTE[self.number % len(PALETTE)][0]

    @property
    def marker(self) -> str:
        return MARKERS[(self.number + self.number // len(PALETTE)) % len(MARKERS)]

    @property
    def line(self) -> str:
        return _round_of(self.number)[0]

    def mark(self, *artists: Any) -> None:
        """Tell the page whose `artists` are, so that it can hide and show them."""
        for artist in artists:
            artist.set_gid(f"arm-{self.number}-{id(artist)}")


def _round_of(number: int) -> tuple[str, float]:
    return _ROUNDS[number // len(PALETTE) % len(_ROUNDS)]


@contextmanager
def themed(name: str) -> Iterator[None]:
    """matplotlib in this report's style, without a screen; `name` keeps the ids of several SVGs on a page apart."""
    import matplotlib as mpl

    with mpl.rc_context(
        {
            "svg.hashsalt": f"kappaspeech-{name}",
            "svg.fonttype": "none",
            "font.size": 10.5,
            "axes.titlesize": 11.5,
            "axes.titleweight": "bold",
            "axes.titlelocation": "left",
            "axes.edgecolor": FAINT,
            "axes.labelcolor": FAINT,
            "axes.titlecolor": INK,
            "axes.facecolor": PAPER,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.grid": True,
            "axes.axisbelow": True,
            "grid.color": GRID,
            "figure.facecolor": PAPER,
            "savefig.facecolor": PAPER,
            "xtick.color": FAINT,
            "ytick.color": FAINT,
            "text.color": INK,
            "lines.linewidth": 2.0,
            "lines.markersize": 4.5,
        }
    ):
        yield


def log_plain(axis: Any, set_scale: Callable[[str], None]) -> None:
    """A logarithmic axis with plain numbers: a range of less than a decade has ticks as well."""
    from matplotlib.ticker import Locator, LogLocator, MaxNLocator, NullFormatter, StrMethodFormatter

    class PlainLocator(Locator):
        """As many numbers as can be read beside each other: even steps within a decade, 1, 2 and 5 beyond."""

        def __call__(self) -> Any:
            return self.tick_values(*axis.get_view_interval())

        def tick_values(self, vmin: float, vmax: float) -> Any:
            low, high = sorted((max(vmin, 1e-9), max(vmax, 1e-9)))
            if high / low < _DECADE:
                return [tick for tick in MaxNLocator(nbins=_NUM_TICKS - 1).tick_values(low, high) if low <= tick <= high]
            subs = (1.0, 2.0, 5.0) if high / low < _DECADE**2 else (1.0,)
            return LogLocator(subs=subs, numticks=_NUM_TICKS + 2).tick_values(low, high)

    set_scale("log")
    axis.set_major_locator(PlainLocator())
    axis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axis.set_minor_formatter(NullFormatter())


def label_ends(axes: Any, ends: Sequence[tuple[Style, float, float]]) -> None:
    """Name each line at its right end (x, y in data), pushed apart if ends are near each other."""
    low, high = axes.get_ylim()
    ordered = sorted(ends, key=lambda end: end[2])
    heights = spread_out([_share(y, axes.get_ylim(), axes.get_yscale()) for _, _, y in ordered], gap=_LABEL_GAP)
    for (style, x, y), height in zip(ordered, heights, strict=True):
        _write_name(axes, style, (x, min(max(y, low), high)), at=(1.03, height))


def _write_name(axes: Any, style: Style, point: tuple[float, float], *, at: tuple[float, float]) -> None:
    """Write an arm's name at a share of the axes, with a line to its point (in data).

    Pushed away without one, the name of one of several arms of its colour would be anybody's.
    """
    label = axes.annotate(
        style.label,
        xy=point,
        xytext=at,
        textcoords="axes fraction",
        color=style.colour,
        va="center",
        annotation_clip=False,
        # from the middle of the name's beginning, so that it crosses no other name
        arrowprops={"arrowstyle": "-", "color": style.colour, "linewidth": 0.7, "shrinkA": 1, "shrinkB": 3, "relpos": (0, 0.5)},
    )
    style.mark(label, label.arrow_patch)


def label_points(axes: Any, points: Sequence[tuple[Style, float, float]]) -> None:
    """Name points (x, y in data) at their right, pushed apart if names would lie on each other."""
    low, high = axes.get_xlim()
    bottom, top = axes.get_ylim()
    width = max((_SIGN_WIDTH * len(style.label) for style, *_ in points), default=0.0)
    # room at the right for the name of the last point
    axes.set_xlim(low, high * (high / low) ** width if axes.get_xscale() == "log" else high + width * (high - low))
    columns: list[list[tuple[float, Style, float, float]]] = []
    for style, x, y in sorted(points, key=lambda point: point[1]):
        share = _share(x, axes.get_xlim(), axes.get_xscale())
        if not columns or share - columns[-1][0][0] > width:
            columns.append([])
        columns[-1].append((share, style, x, y))
    for column in columns:
        ordered = sorted(column, key=lambda item: item[3])
        heights = spread_out([_share(y, axes.get_ylim(), axes.get_yscale()) for *_, y in ordered], gap=_LABEL_GAP)
        for (share, style, x, y), height in zip(ordered, heights, strict=True):
            _write_name(axes, style, (x, min(max(y, bottom), top)), at=(share + 0.025, height))


def _share(value: float, limits: tuple[float, float], scale: str) -> float:
    """The place of a value between an axis's limits, from 0 to 1."""
    low, high = limits
    share = math.log(value / low) / math.log(high / low) if scale == "log" else (value - low) / (high - low)
    return min(max(share, 0.0), 1.0)


def spread_out(heights: Sequence[float], *, gap: float) -> list[float]:
    """Ascending `heights` moved to be at least `gap` apart and between 0 and 1 if they fit.

    Those that lie too near each other become a group about their own middle; groups that meet become one.
    """
    groups: list[list[float]] = []
    for height in heights:
        groups.append([height])
        while len(groups) > 1 and _places(groups[-2], gap)[-1] + gap > _places(groups[-1], gap)[0]:
            last = groups.pop()
            groups[-1] += last
    return [place for group in groups for place in _places(group, gap)]


def _places(group: Sequence[float], gap: float) -> list[float]:
    span = gap * (len(group) - 1)
    lowest = max(min(sum(group) / len(group) - span / 2, 1.0 - span), 0.0)
    return [lowest + gap * index for index in range(len(group))]


def write_figure(figure: Any, path: Path) -> None:
    """Write PNG or SVG by the name of `path`; without date, so that the same runs give the same bytes."""
    kind = path.suffix.removeprefix(".")
    if kind == "svg":
        text = _plain_ids(_render(figure))
        write_with(path, lambda temporary: _fill(temporary, text))
    else:
        write_with(path, lambda temporary: figure.savefig(temporary, format=kind, dpi=160, metadata={"Software": None}))


def _fill(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")


def _render(figure: Any) -> str:
    text = StringIO()
    figure.savefig(text, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    return text.getvalue()


def _plain_ids(svg: str) -> str:
    return re.sub(r' id="arm-(\d+)-\d+"', r' class="arm arm-\1"', svg)


def inline_svg(figure: Any, *, label: str) -> str:
    """The figure for a page: it refers to nothing outside, its colours are the page's variables, artists have arms' classes."""
    svg = _plain_ids(_render(figure))
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'\sxmlns(:\w+)?="[^"]*"', "", svg)
    svg = re.sub(r'<svg [^>]*?viewBox="([^"]*)"[^>]*>', f'<svg viewBox="\\1" role="img" aria-label="{label}">', svg, count=1)
    for colour, variable in _VARIABLES.items():
        svg = svg.replace(colour, f"var(--{variable})")
    return svg


def style_variables() -> str:
    """The drawings' colours as a page's CSS, for light and for dark."""
    dark = {**_DARK, **{f"arm-{number}": colour for number, (_, colour) in enumerate(PALETTE)}}
    light_rules = "".join(f"--{variable}:{colour};" for colour, variable in _VARIABLES.items())
    dark_rules = "".join(f"--{variable}:{colour};" for variable, colour in dark.items())
    return f":root{{{light_rules}}}@media (prefers-color-scheme:dark){{:root{{{dark_rules}}}}}"


def arm_background(number: int) -> str:
    """The sign of an arm on the page, as CSS: its colour, in stripes if its lines are broken."""
    colour, share = f"var(--arm-{number % len(PALETTE)})", _round_of(number)[1]
    return colour if share == 1 else f"repeating-linear-gradient(90deg,{colour} 0 {share / 3:.0%},transparent 0 33.4%)"
