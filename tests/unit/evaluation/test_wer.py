"""Normalising, counting and resampling."""

from __future__ import annotations

import pytest

from pipeline.evaluation.wer import Hypothesis, WerCount, count_words, measure, normalise, paired_difference, pool


def said(reference: str, hypothesis: str, *, language: str = "en", key: str = "a") -> Hypothesis:
    return Hypothesis(key, language, reference, hypothesis)


@pytest.mark.parametrize(
    ("text", "language", "expected"),
    [
        ("Turn on the LAMP, please!", "en", "turn on the lamp please"),
        ("It's twenty", "en", "it is 20"),
        ("Öffne die grüne Tür!", "de", "öffne die grüne tür"),
        ("weiß", "de", "weiß"),
        ("  zwei   Wörter\n", "de", "zwei wörter"),
    ],
)
def test_text_is_normalised_by_its_language(text, language, expected):
    assert normalise(text, language) == expected


@pytest.mark.parametrize(
    ("reference", "hypothesis", "counted"),
    [
        ("a red lamp", "a red lamp", WerCount(0, 0, 0, 3)),
        ("a red lamp", "a green lamp", WerCount(1, 0, 0, 3)),
        ("a red lamp", "red lamp", WerCount(0, 1, 0, 3)),
        ("a red lamp", "a very red lamp", WerCount(0, 0, 1, 3)),
        ("a red lamp", "", WerCount(0, 3, 0, 3)),
        ("...", "noise", WerCount(0, 0, 1, 0)),
    ],
)
def test_edits_are_counted(reference, hypothesis, counted):
    assert count_words([said(reference, hypothesis, language="de")]) == [counted]


def test_the_rate_is_of_pooled_counts_and_the_mean_is_over_languages():
    report = measure(
        [
            said("eins zwei drei vier", "eins zwei drei vier", language="de", key="1"),
            said("eins zwei drei vier", "eins zwei", language="de", key="2"),
            said("a lamp", "no door", key="3"),
        ]
    )
    assert report["languages"]["de"]["wer"] == pytest.approx(2 / 8)
    assert report["languages"]["en"]["wer"] == 1
    assert report["mean_wer"] == pytest.approx((0.25 + 1) / 2)
    assert report["pooled_wer"] == pytest.approx(4 / 10)
    assert report["languages"]["de"]["num_utterances"] == 2


def test_the_interval_holds_the_rate_and_narrows_with_more_utterances():
    def width(times: int) -> float:
        items = [said("a b c d", "a b c d" if i % 3 else "a x y d", language="de", key=str(i)) for i in range(30 * times)]
        report = measure(items)["languages"]["de"]
        low, high = report["interval"]
        assert low < report["wer"] < high
        return high - low

    assert width(16) < 0.4 * width(1)


def test_the_report_is_deterministic():
    items = [said("a b c", "a b" if i % 2 else "a b c", key=str(i)) for i in range(9)]
    assert measure(items) == measure(items)


def test_a_paired_difference_is_surer_than_its_two_sides():
    first = [said("a b c d", "a b c d" if i % 2 else "x y c d", language="de", key=str(i)) for i in range(40)]
    # always one error more, on whatever utterance
    second = [said(item.reference, item.hypothesis.replace("d", "z"), language="de", key=item.key) for item in first]
    gap, (low, high) = paired_difference(first, second)
    assert (gap, low, high) == pytest.approx((0.25, 0.25, 0.25))


def test_a_paired_difference_of_other_utterances_is_refused():
    with pytest.raises(ValueError, match="same utterances"):
        paired_difference([said("a", "a", key="1")], [said("a", "a", key="2")])


def test_pooling_nothing_has_no_rate():
    assert pool([]).rate != pool([]).rate
