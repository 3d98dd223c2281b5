"""The page of hypotheses, in text and in a real browser."""

from __future__ import annotations

import io
import re
import subprocess

import numpy as np
import pytest
import soundfile

from kappaspeech.evaluation import page
from kappaspeech.evaluation.page import align, make_page
from kappaspeech.evaluation.wer import Hypothesis
from tests.browser import chromium, find_chromium
from tests.patience import patience

HYPOTHESES = [
    Hypothesis("en/1", "en", "A red lamp.", "a <b>green</b> lamp", seconds=2.0),
    Hypothesis("de/2", "de", "Öffne die Tür!", "öffne Tür jetzt bitte", seconds=9.5),
    Hypothesis("en/3", "en", "Fine", "fine", seconds=4.0, ending="loop"),
]


def flac(seconds: float) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, 0.1 * np.sin(np.arange(int(16_000 * seconds)) / 20), 16_000, format="FLAC")
    return file.getvalue()


@pytest.mark.parametrize(
    ("reference", "hypothesis", "expected"),
    [
        ("eins zwei", "eins zwei", "eins zwei"),
        ("eins zwei", "eins drei", "eins <s class=sub>zwei</s> <b class=sub>drei</b>"),
        ("eins zwei", "zwei", "<s class=del>eins</s> zwei"),
        ("eins", "eins zwei", "eins <b class=ins>zwei</b>"),
        ("eins", "", "<s class=del>eins</s>"),
        ("…", "eins", "<b class=ins>eins</b>"),
        ("", "", ""),
    ],
)
def test_differences_are_marked_word_by_word(reference, hypothesis, expected):
    assert align(Hypothesis("a", "de", reference, hypothesis)) == expected


def test_the_page_needs_no_network_and_escapes_what_was_written():
    text = make_page("run <1>", HYPOTHESES, {("", "en/1"): flac(0.2)})
    assert not re.search(r'(src|href)=(?!"data:)', text)
    assert "://" not in text
    assert "a &lt;b&gt;green&lt;/b&gt; lamp" in text
    assert "<title>run &lt;1&gt;</title>" in text
    assert text.count("data:audio/flac;base64,") == 1


def test_what_was_measured_beside_stands_on_the_page_as_text():
    assert "<p>tasks en 75% → &lt;80%&gt;</p>" in make_page("run", HYPOTHESES, {}, notes=["tasks en 75% → <80%>"])


def test_the_page_holds_the_worst_utterances_where_there_are_too_many(monkeypatch):
    monkeypatch.setattr(page, "MAX_ROWS", 1)
    text = make_page("run", HYPOTHESES, {})
    assert "1 of 3 utterances, most errors first" in text
    assert 'data-key="de/2"' in text
    assert 'data-key="en/1"' not in text


@pytest.fixture(scope="module")
def browse(tmp_path_factory):
    """The page's DOM after its script has run, as Chromium has it."""
    chromium = find_chromium()
    folder = tmp_path_factory.mktemp("page")

    def open_page(text: str, fragment: str = "") -> str:
        (folder / "page.html").write_text(text, encoding="utf-8")
        flags = "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
        flags += "--disable-component-update --disable-sync --autoplay-policy=no-user-gesture-required --virtual-time-budget=4000"
        address = f"{(folder / 'page.html').as_uri()}{fragment}"
        command = [chromium, *flags.split(), f"--user-data-dir={folder}/profile", "--dump-dom", address]
        done = subprocess.run(command, capture_output=True, text=True, timeout=patience(90))
        assert done.returncode == 0, done.stderr[-2000:]
        return done.stdout

    return open_page


def keys(dom: str) -> list[str]:
    return re.findall(r'<td data-key="([^"]+)"', dom)


@pytest.mark.slow
def test_a_browser_sorts_the_page_and_plays_a_clip(browse):
    # what a reader does: the third column's heading twice, one language alone, and the clip
    action = """<script>const press=key=>document.querySelector(`button[data-key=${key}]`).click();
    press('seconds');press('seconds');
    const select=document.querySelector('select');select.value='en';select.dispatchEvent(new Event('change'));
    const audio=document.querySelector('audio');audio.onloadedmetadata=()=>document.body.dataset.played=audio.duration;
    audio.onerror=()=>document.body.dataset.played='failed';audio.load();audio.play().catch(()=>0)</script>"""
    dom = browse(make_page("run", HYPOTHESES, {("", "en/1"): flac(1.5)}) + action)
    assert keys(dom) == ["en/1", "en/3", "de/2"]
    assert re.findall(r'<tr hidden="">.*?data-key="([^"]+)"', dom) == ["de/2"]
    assert re.search(r'data-played="1\.5"', dom), "the clip didn't load"


@pytest.mark.slow
@pytest.mark.parametrize("width", [1280, 390])
def test_the_page_fits_screens_and_searches(tmp_path, width):
    path = tmp_path / "page.html"
    path.write_text(make_page("run", HYPOTHESES, {("", "en/1"): flac(1.5)}), encoding="utf-8")
    with chromium(tmp_path / "profile") as tab:
        tab.open(path, width=width)
        light = tab.run("getComputedStyle(document.body).backgroundColor")
        assert tab.run("document.documentElement.scrollWidth <= window.innerWidth")
        assert tab.run("document.querySelector('.player').textContent").strip() == "2.0 s"
        search = "const i = document.querySelector('input'); i.value = {!r}; i.dispatchEvent(new Event('input'));"
        rows = "[...document.querySelectorAll('tbody tr')].filter(r => !r.hidden)"
        shown = f"{rows}.map(r => r.querySelector('[data-key]').dataset.key)"
        tab.run("(() => {" + search.format("GREEN lamp") + "})()")
        assert tab.run(shown) == ["en/1"]
        assert tab.run("document.querySelector('output').textContent") == "1 of 3 shown"
        tab.run("(() => {" + search.format("") + "})()")
        assert len(tab.run(shown)) == 3
        tab.open(path, width=width, dark=True)
        assert tab.run("getComputedStyle(document.body).backgroundColor") != light
        assert tab.messages == []


def test_the_page_says_why_a_text_was_cut():
    text = make_page("run", HYPOTHESES, {})
    assert "Cut: loop, the text repeated itself and was cut there." in text
    assert "Cut:" not in make_page("run", HYPOTHESES[:2], {})


@pytest.mark.slow
def test_the_address_can_name_the_order(browse):
    assert keys(browse(make_page("run", HYPOTHESES, {}), "#-seconds")) == ["de/2", "en/3", "en/1"]
