from __future__ import annotations

import pytest

from kappaspeech.evaluation.biased_wer import measure_biased
from kappaspeech.evaluation.wer import Hypothesis, count_words, pool

SAID = [
    # "zoe" is written as another word, "lamp" is left out
    Hypothesis("a", "en", "give Zoe the red lamp", "give so the red"),
    # "kilda" is right, and "zoe" was never said
    Hypothesis("b", "en", "Kilda is far", "kilda is zoe far"),
]


def test_hot_words_and_the_others_are_counted_apart():
    report = measure_biased(SAID, ["Zoe", "St. Kilda", "unsaid"])
    assert report == {
        "num_hot_words": 3,
        "num_said": 2,
        "num_found": 1,
        "recall": 0.5,
        # zoe is missed once and invented once, of two
        "biased_wer": 1.0,
        "unbiased_wer": pytest.approx(1 / 6),
    }


def test_the_two_add_up_to_wer():
    report = measure_biased(SAID, ["Zoe", "Kilda"])
    errors = report["biased_wer"] * report["num_said"] + report["unbiased_wer"] * (8 - report["num_said"])
    assert errors == pytest.approx(pool(count_words(SAID)).errors)


def test_words_are_compared_as_wer_compares_them():
    said = [Hypothesis("a", "en", "The COLOUR of Zoë's lamp.", "the color of zoe's lamp")]
    assert measure_biased(said, ["colour"])["recall"] == 1.0


def test_without_a_reference_there_is_no_rate_but_what_is_invented_counts():
    report = measure_biased([Hypothesis("a", "en", "", "zoe came")], ["Zoe"])
    assert (report["recall"], report["biased_wer"], report["unbiased_wer"]) == (None, None, None)
    both = measure_biased([Hypothesis("a", "en", "", "zoe came"), Hypothesis("b", "en", "zoe", "zoe")], ["Zoe"])
    assert (both["recall"], both["biased_wer"]) == (1.0, 1.0)
