from __future__ import annotations

from kappaspeech.evaluation.markup import for_page
from kappaspeech.evaluation.page import make_page
from kappaspeech.evaluation.wer import Hypothesis


def test_a_pages_text_has_no_markup_and_nothing_that_reorders_it():
    assert for_page('<b a="\'">&\x1b\u202e\ud800') == "&lt;b a=&quot;&#x27;&quot;&gt;&amp;\\x1b\\u202e\\ud800"


def test_a_pages_text_keeps_letters_of_every_script():
    text = "मैं क्‍या می‌خواهم 👩‍👩‍👧 \u200f עִבְרִית"
    assert for_page(text) == text


def test_every_text_of_a_hypotheses_page_is_escaped():
    bad = "<img src=x onerror=alert(1)>\u202e"
    page = make_page(bad, [Hypothesis(bad, "en", bad, f"{bad} more", 1.0, bad)], {})
    assert "<img" not in page
    assert "\u202e" not in page
