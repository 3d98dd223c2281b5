"""The report's page, in a real browser where there is one."""

from __future__ import annotations

import itertools
import json
import math
import random
from pathlib import Path

import pytest

from kappaspeech.commands import main
from kappaspeech.comparison.runs import group_runs, read_run
from kappaspeech.comparison.summary import summarise
from kappaspeech.comparison.theme import spread_out
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


def test_the_reports_numbers_are_over_seeds_and_the_first_arm_is_the_reference(report):
    content = json.loads((report / "report.json").read_text())
    assert [(arm["arm"], arm["seeds"]) for arm in content["arms"]] == [(arm, [17, 18]) for arm in ARMS]
    for arm in content["arms"]:
        mean = arm["wer"]["mean"]
        assert mean["mean"] == pytest.approx(sum(mean["by_seed"]) / 2)
        assert mean["interval"][0] < mean["mean"] < mean["interval"][1]
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
