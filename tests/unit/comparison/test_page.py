"""The report's page, in a real browser if there is one."""

from __future__ import annotations

import itertools
import json
import math
import random
import re
from pathlib import Path

import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text

from kappaspeech.commands import main
from kappaspeech.comparison.curves import draw_wer
from kappaspeech.comparison.maps import draw_drift, draw_kappas
from kappaspeech.comparison.runs import group_runs, read_run
from kappaspeech.comparison.summary import summarise
from kappaspeech.comparison.theme import Style, label_ends, log_plain, spread_out
from kappaspeech.comparison.words import say_equals_p, say_gap
from tests.browser import chromium
from tests.made_runs import TENSORS, make_run

NAMES = sorted(TENSORS)
ARMS = ("smallest κ", "largest κ", "random", "adaptor only")


def make_arms(folder: Path, *, seeds: tuple[int, ...] = (17, 18)) -> list[Path]:
    """Runs of four arms, seed by seed."""
    small = [name for name in NAMES if "v_proj" in name or "up_proj" in name]
    large = [name for name in NAMES if "q_proj" in name or "embed" in name]
    paths = []
    for seed in seeds:
        drawn = random.Random(seed).sample(NAMES, 20)
        for arm, rate, forgetting, selected in zip(
            ARMS, (0.08, 0.2, 0.1, 0.5), (0.3, 2.1, 1.0, 0.0), (small, large, drawn, ()), strict=True
        ):
            run = folder / f"{len(paths)}"
            paths.append(make_run(run, arm, seed=seed, error_rate=rate, forgetting=forgetting, selected=selected))
    return paths


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    folder = tmp_path_factory.mktemp("arms")
    assert main(["compare", *map(str, make_arms(folder)), "--output", str(folder / "report")]) == 0
    return folder / "report"


def test_the_page_refers_to_nothing_outside_itself(report):
    page = (report / "report.html").read_text(encoding="utf-8")
    assert "http" not in page
    assert "//" not in page.replace("</", "")
    assert page.count("<svg") == page.count("</svg>") > 5


@pytest.mark.slow
def test_the_page_works_in_a_browser(report, tmp_path):
    with chromium(tmp_path / "profile") as page:
        page.open(report / "report.html")
        assert page.run("document.documentElement.dataset.ready") == "yes"
        # every drawing has a size, and every name of an arm can be read in it
        boxes = page.run("[...document.querySelectorAll('figure:not([hidden]) svg')].map(s => s.getBoundingClientRect().height)")
        assert len(boxes) > 8
        assert min(boxes) > 100
        assert page.run("document.documentElement.scrollWidth <= window.innerWidth")
        # an arm is hidden and shown by its button, in all drawings
        marked = "[...document.querySelectorAll('figure:not([hidden]) svg .arm-1')]"
        lines = f"{marked}.filter(l => l.getBoundingClientRect().width > 0).length"
        drawn = page.run(lines)
        assert drawn > 5
        page.click("button[data-arm='1']")
        assert page.run(lines) == 0
        page.click("button[data-arm='1']")
        assert page.run(lines) == drawn
        # the clock changes the drawing
        page.click("button[data-clock='minutes']")
        assert page.run("[...document.querySelectorAll('figure[data-shown-by]')].map(f => f.hidden)") == [True, False]
        # a heading sorts by the number, not by its letters, and back
        column = page.run(
            "[...document.querySelectorAll('table.sortable th')].findIndex(h => h.textContent.startsWith('mean WER'))"
        )
        order = "[...document.querySelectorAll('table.sortable tbody tr')].map(r => r.cells[0].textContent)"
        page.click("table.sortable th", column)
        assert page.run(order) == ["smallest κ", "random", "largest κ", "adaptor only"]
        page.click("table.sortable th", column)
        assert page.run(order) == ["adaptor only", "largest κ", "random", "smallest κ"]
        assert page.messages == []
        assert [url for url in page.requests if url != "data:,"] == [(report / "report.html").as_uri()]
        light = page.run("getComputedStyle(document.body).backgroundColor")
        page.open(report / "report.html", dark=True, width=420)
        assert page.run("getComputedStyle(document.body).backgroundColor") != light
        assert page.run("document.documentElement.scrollWidth <= window.innerWidth"), "a narrow page scrolls sideways"
        assert page.messages == []


CUT_OFF = """[...document.querySelectorAll('.scroll, td, th, figure, p, h1')].filter(
    e => e.checkVisibility() && e.scrollWidth > e.clientWidth + 1).map(e => e.outerHTML.slice(0, 80))"""
# the least height of a drawing's letters, in pixels
SMALLEST_LETTER = """Math.min(...[...document.querySelectorAll('figure:not([hidden]) svg text')].map(
    t => t.getBoundingClientRect().height).filter(h => h > 0))"""


# numbers whose % is in the next line
BROKEN = r"""[...document.querySelectorAll('p.verdict, ul.lead, [data-label]')].flatMap(part => {
    const texts = document.createTreeWalker(part, NodeFilter.SHOW_TEXT), found = [];
    while (texts.nextNode()) for (const match of texts.currentNode.data.matchAll(/\d\s%/g)) {
        const range = document.createRange();
        range.setStart(texts.currentNode, match.index);
        range.setEnd(texts.currentNode, match.index + 3);
        if (new Set([...range.getClientRects()].map(box => box.top)).size > 1) found.push(texts.currentNode.data);
    }
    return found;
})"""


@pytest.mark.slow
@pytest.mark.parametrize("width", [1280, 390])
def test_nothing_is_cut_off_and_letters_can_be_read(report, tmp_path, width):
    with chromium(tmp_path / "profile") as page:
        for dark in (False, True):
            page.open(report / "report.html", width=width, dark=dark)
            assert page.run("document.documentElement.scrollWidth <= window.innerWidth")
            assert page.run(CUT_OFF) == []
            assert page.run(BROKEN) == []
            assert page.run(SMALLEST_LETTER) > 8
        # forgetting is seen without scrolling sideways
        heads = "[...document.querySelectorAll('[data-label^=perplexity]')].map(e => e.getBoundingClientRect())"
        assert page.run(f"{heads}.every(b => b.width > 0 && b.right <= window.innerWidth)")
        assert page.messages == []


@pytest.mark.slow
def test_all_tables_keep_the_order_in_which_one_is_sorted(report, tmp_path):
    with chromium(tmp_path / "profile") as page:
        page.open(report / "report.html")
        tables = "[...document.querySelectorAll('table.sortable, table.follows')]"
        names = f"{tables}.map(t => [...t.tBodies[0].rows].map(r => r.cells[0].textContent))"
        page.click("table.sortable th", 3)
        page.click("table.sortable th", 3)
        first, *others = page.run(names)
        assert first[0] == "adaptor only"
        assert len(others) > 1
        assert all(order == first for order in others)


def test_the_verdict_comes_first_and_the_reference_is_named(report):
    text = (report / "report.html").read_text(encoding="utf-8")
    first = re.search(r"<p class=verdict>(.*?)</p>", text)
    assert first is not None
    assert first[1].startswith("smallest κ has the lowest mean WER, ")
    assert "adaptor only keeps text best: perplexity is 1.00 times what it was before training." in first[1]
    assert text.index("class=verdict") < text.index("<table")
    assert "Differences are against smallest κ." in text
    assert first[1].endswith(" Each arm has 2 seeds.")
    assert re.search(r"The reference, smallest κ: mean WER \d+\.\d % over 2 seeds\.", text)


def test_another_reference_is_chosen_by_its_name(report, tmp_path, capsys):
    runs = [str(report.parent / str(number)) for number in range(2 * len(ARMS))]
    assert main(["compare", *runs, "--reference", "random", "--output", str(tmp_path / "report")]) == 0
    arms = json.loads((tmp_path / "report/report.json").read_text())["arms"]
    assert [arm["arm"] for arm in arms] == ["random", "smallest κ", "largest κ", "adaptor only"]
    assert main(["compare", *runs, "--reference", "nobody", "--output", str(tmp_path / "other")]) == 2
    assert "--reference is 'nobody'; the arms are 'smallest κ', " in capsys.readouterr().err


def test_one_arm_alone_is_told_before_and_after(report, tmp_path):
    runs = [str(report.parent / "0"), str(report.parent / "4")]
    assert main(["compare", *runs, "--output", str(tmp_path / "report")]) == 0
    text = (tmp_path / "report/report.html").read_text(encoding="utf-8")
    found = re.search(r"<p class=verdict>(.*?)</p>", text)
    assert found is not None
    assert re.fullmatch(
        r"smallest κ, 2 seeds: mean WER \d+ → \d+\.\d %; de perplexity 90 → 117; en perplexity 70 → 91\.", found[1]
    )
    assert "minus" not in text
    assert "reference" not in found[1]


def test_names_of_arms_stay_text_on_the_page(tmp_path):
    nasty = "<script>alert(1)</script>{{ 7 * 7 }}\u202e"
    run = make_run(tmp_path / "run", nasty, seed=17, error_rate=0.1)
    assert main(["compare", str(run), "--output", str(tmp_path / "report")]) == 0
    text = (tmp_path / "report/report.html").read_text(encoding="utf-8")
    assert "<script>alert" not in text
    assert "{{ 7 * 7 }}" in text
    assert "\u202e" not in text


def test_wer_above_the_ceiling_is_marked_and_told(tmp_path):
    run = make_run(tmp_path / "run", "alone", seed=17, error_rate=0.1)
    (arm,) = group_runs([read_run(run)])
    figure = Figure()
    axes = figure.subplots()
    draw_wer(axes, [arm], clock="steps")
    above = [100 * item["wer"]["mean_wer"] for item in arm.runs[0].evaluations if item["wer"]["mean_wer"] > 1.1]
    assert above
    assert [line.get_xdata()[0] for line in axes.lines if line.get_marker() == "^" and len(line.get_xdata()) == 1] != []
    assert any(f"{max(above):.0f} %" in text.get_text() for text in axes.texts)
    assert axes.get_title() == "Mean WER over steps"


@pytest.mark.parametrize(
    "rates, wanted", [((3.48, 0.5, 0.4), (38.5, 51.5)), ((0.9, 0.4, 0.02), (0, 94.5)), ((0.4, 0.4), (0, 42))]
)
def test_curves_that_lie_close_together_have_the_height_of_the_drawing(tmp_path, rates, wanted):
    (arm,) = group_runs([read_run(make_run(tmp_path / "run", "alone", seed=17, error_rate=0.1))])
    evaluations = arm.runs[0].evaluations
    for record, rate in zip(evaluations, rates, strict=False):
        record["wer"]["mean_wer"] = rate
    del evaluations[len(rates) :]
    axes = Figure().subplots()
    draw_wer(axes, [arm], clock="steps")
    assert axes.get_ylim() == pytest.approx(wanted)


def test_ticks_keep_their_distance():
    for low, high in ((93.0, 105.0), (90.0, 411.0), (3.0, 5000.0)):
        axes = Figure().subplots()
        axes.set_xlim(low, high)
        log_plain(axes.xaxis, axes.set_xscale)
        ticks = [tick for tick in axes.xaxis.get_majorticklocs() if low <= tick <= high]
        assert 2 <= len(ticks) <= 8
        places = [math.log(tick / low) / math.log(high / low) for tick in ticks]
        assert all(after - before > 0.05 for before, after in itertools.pairwise(places))


def test_a_narrow_range_of_a_tensors_drift_or_kappa_has_plain_numbers(tmp_path):
    run = make_run(tmp_path / "run", "alone", seed=17, error_rate=0.1, selected=NAMES[:20])
    (arm,) = group_runs([read_run(run)])
    for number, (name, (before, _)) in enumerate(sorted(arm.runs[0].kappas.items())):
        # as real runs have it: κ between 4 and 25, which training changes by a thousandth
        kappa = 4 + number + before * 1e-9
        arm.runs[0].kappas[name] = (kappa, kappa * (1 + 1e-3 * (number - 5)))
        arm.runs[0].drift[name] = 0.004 * (1 + number / 10)
    for draw in (draw_drift, draw_kappas):
        axes = Figure().subplots()
        draw(axes, [arm])
        for axis, limits in ((axes.xaxis, axes.get_xlim()), (axes.yaxis, axes.get_ylim())):
            labels = [label.get_text() for label in (*axis.get_majorticklabels(), *axis.get_minorticklabels())]
            shown = [label for label in labels if label]
            assert 2 <= len(shown) <= 8
            assert all(limits[0] * 0.999 <= float(label) <= limits[1] * 1.001 for label in shown)


def test_lines_to_names_begin_at_the_names():
    """Of lines that end together the names are spread out, and a line to one must not cross another."""
    figure = Figure()
    canvas = FigureCanvasAgg(figure)
    axes = figure.subplots()
    axes.plot([0, 1], [0, 1])
    label_ends(axes, [(Style(number, f"arm {number}"), 1.0, 0.5) for number in range(4)])
    canvas.draw()
    for label in axes.texts:
        # of the letters, without the line
        box = Text.get_window_extent(label)
        places = label.arrow_patch.get_path().vertices
        assert axes.bbox.x1 - 10 < max(places[:, 0]) <= box.x0 + 1


@pytest.mark.parametrize(
    ("mean", "interval", "said"),
    [
        (-24.2, (-28.8, -20.0), ("24.2 points less", "20.0 to 28.8")),
        (24.2, (20.0, 28.8), ("24.2 points more", "20.0 to 28.8")),
        (-1.3, (-3.1, 0.4), ("1.3 points less", "0.4 more to 3.1 less")),
        (0.0, (-1.0, 2.0), ("0.0 points less", "2.0 more to 1.0 less")),
        (-1.0, (-2.0, 0.0), ("1.0 points less", "0.0 to 2.0")),
    ],
)
def test_an_interval_has_the_signs_of_its_difference(mean, interval, said):
    assert say_gap(mean, interval, unit="points") == said


def test_the_smallest_p_is_told_as_a_bound():
    assert [say_equals_p(p) for p in (2 / 2001, 0.0011, 0.5)] == ["p ≤ 0.001", "p = 0.001", "p = 0.500"]


def test_the_reports_numbers_are_over_seeds_and_the_first_arm_is_the_reference(report):
    content = json.loads((report / "report.json").read_text())
    assert [(arm["arm"], arm["seeds"]) for arm in content["arms"]] == [(arm, [17, 18]) for arm in ARMS]
    for arm in content["arms"]:
        mean = arm["wer"]["mean"]
        assert mean["mean"] == pytest.approx(sum(mean["by_seed"]) / 2)
        assert mean["interval"][0] < mean["mean"] < mean["interval"][1]
    firsts = [read_run(report.parent / str(number)).first["wer"]["languages"]["de"]["wer"] for number in (0, len(ARMS))]
    assert firsts[0] != firsts[1]
    assert content["arms"][0]["wer_before"]["de"] == pytest.approx(sum(firsts) / 2)
    assert content["arms"][0]["difference"] is None
    gap = content["arms"][1]["difference"]["mean"]
    assert gap["mean"] == pytest.approx(content["arms"][1]["wer"]["mean"]["mean"] - content["arms"][0]["wer"]["mean"]["mean"])
    assert gap["interval"][0] > 0
    assert gap["p_value"] < 0.05
    assert len(content["proof"]) == 2
    assert content["arms"][1]["text"]["en"]["kl_nats"]["mean"] == pytest.approx(math.log(3.1))
    assert content["arms"][1]["text"]["en"]["perplexity"]["mean"] == pytest.approx(70 * 3.1)


def test_the_same_runs_give_the_same_bytes(report, tmp_path):
    runs = [report.parent / str(number) for number in range(2 * len(ARMS))]
    assert main(["compare", *map(str, runs), "--output", str(tmp_path / "again")]) == 0
    for path in report.iterdir():
        assert (tmp_path / "again" / path.name).read_bytes() == path.read_bytes(), path.name


def test_an_arm_that_lacks_a_seed_is_compared_over_the_others(report):
    runs = [read_run(report.parent / str(number)) for number in range(2 * len(ARMS) - 3)]
    smallest, largest = summarise(group_runs(runs), missing={})["arms"][:2]
    assert (len(smallest["seeds"]), len(largest["seeds"])) == (2, 1)
    assert len(largest["difference"]["mean"]["by_seed"]) == 1


def test_labels_keep_their_order_and_their_distance():
    for heights in ([0.0], [0.2, 0.2, 0.21], [0.9, 0.95, 1.0, 1.0], [0.0, 0.5, 1.0]):
        placed = spread_out(heights, gap=0.1)
        assert placed == sorted(placed)
        assert all(after - before > 0.1 - 1e-9 for before, after in itertools.pairwise(placed))
        assert 0 <= placed[0] <= placed[-1] <= 1
    assert spread_out([0.0, 0.5, 1.0], gap=0.1) == [0.0, 0.5, 1.0]
