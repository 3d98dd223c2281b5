"""Normalising, counting and the report on a test set."""

from __future__ import annotations

import json
from dataclasses import replace

import jiwer
import pytest

from kappaspeech.evaluation.alignment import WerCount
from kappaspeech.evaluation.wer import (
    Hypothesis,
    compare_hypotheses,
    count_characters,
    count_words,
    measure,
    measure_sensitivity,
    normalise,
    normaliser_name,
    pool,
)


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


# counted by hand: substitutions, deletions, insertions, words of the reference; characters wrong, characters of the reference
TABLE = [
    # language, reference, hypothesis, S, D, I, words, character errors, characters
    ("en", "A red lamp.", "a red lamp", 0, 0, 0, 3, 0, 10),
    ("en", "a red lamp", "a green lamp", 1, 0, 0, 3, 3, 10),
    ("en", "a red lamp", "red lamp", 0, 1, 0, 3, 2, 10),
    ("en", "a red lamp", "a very red lamp", 0, 0, 1, 3, 5, 10),
    ("en", "a red lamp", "", 0, 3, 0, 3, 10, 10),
    ("en", "", "a red lamp", 0, 0, 3, 0, 10, 0),
    ("en", "", "", 0, 0, 0, 0, 0, 0),
    ("en", "I don't know.", "I do not know", 0, 0, 0, 4, 0, 13),
    ("en", "the colour of the aeroplane", "the color of the airplane", 0, 0, 0, 5, 0, 25),
    ("en", "twenty five dollars", "$25", 0, 0, 0, 1, 0, 3),
    ("en", "in nineteen eighty four", "in 1984", 0, 0, 0, 2, 0, 7),
    ("en", "uh yes", "Yes", 0, 0, 0, 1, 0, 3),
    ("en", "ice cream", "icecream", 1, 1, 0, 2, 1, 9),
    ("de", "Öffne die Tür!", "öffne die tür", 0, 0, 0, 3, 0, 13),
    ("de", "Öffne die Tür!", "Offne die Tur", 2, 0, 0, 3, 2, 13),
    ("de", "Straße", "Strasse", 1, 0, 0, 1, 2, 6),
    ("de", "Die Haustür klemmt", "die Haus Tür klemmt", 1, 0, 1, 3, 1, 18),
    ("de", "Rind Fleisch", "Rindfleisch", 1, 1, 0, 2, 1, 12),
    ("de", "fünfundzwanzig Euro", "25 Euro", 1, 0, 0, 2, 14, 19),
    ("de", "3,5 Prozent", "3 5 Prozent", 0, 0, 0, 3, 0, 11),
    ("de", "Guten Tag", "", 0, 2, 0, 2, 9, 9),
    ("de", "…", "Rauschen", 0, 0, 1, 0, 8, 0),
    # English's normaliser would write 20 here
    ("de", "twenty", "20", 1, 0, 0, 1, 6, 6),
]


@pytest.mark.parametrize(("language", "reference", "hypothesis", "s", "d", "i", "words", "wrong", "characters"), TABLE)
def test_edits_are_those_counted_by_hand(language, reference, hypothesis, s, d, i, words, wrong, characters):
    item = said(reference, hypothesis, language=language)
    assert count_words([item]) == [WerCount(s, d, i, words)]
    (of_characters,) = count_characters([item])
    assert (of_characters.errors, of_characters.reference_length) == (wrong, characters)


@pytest.mark.parametrize("language", ["en", "de"])
def test_rates_are_those_of_jiwer(language):
    # jiwer takes no empty reference
    rows = [(ref, hyp) for lang, ref, hyp, *_ in TABLE if lang == language and normalise(ref, lang)]
    theirs = jiwer.process_words(*([normalise(row[side], language) for row in rows] for side in (0, 1)))
    of_characters = jiwer.process_characters(*([normalise(row[side], language) for row in rows] for side in (0, 1)))
    ours = measure([said(ref, hyp, language=language, key=str(n)) for n, (ref, hyp) in enumerate(rows)])["languages"][language]
    assert ours["wer"] == theirs.wer
    assert ours["cer"] == of_characters.cer
    counted = (ours["substitutions"], ours["deletions"], ours["insertions"])
    assert counted == (theirs.substitutions, theirs.deletions, theirs.insertions)


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
    assert report["pooled"] == {"substitutions": 2, "deletions": 2, "insertions": 0, "reference_length": 10}
    assert report["languages"]["de"]["num_utterances"] == 2


def test_every_language_names_its_normaliser():
    report = measure([said("a", "a", key="1"), said("a", "a", language="de", key="2"), said("a", "a", language="fr", key="3")])
    names = {language: part["normaliser"] for language, part in report["languages"].items()}
    assert names == {"de": "whisper-basic", "en": "whisper-english", "fr": "whisper-basic"}


def test_a_script_with_marks_has_a_normaliser_that_keeps_them_and_upstreams_is_still_to_be_had():
    items = [said("हिन्दी में", "हिन्दी मे", language="hi"), said("IŞIK", "ışık", language="tr", key="b")]
    report = measure(items)
    assert {k: part["normaliser"] for k, part in report["languages"].items()} == {"hi": "marks-kept", "tr": "marks-kept-dotted-i"}
    assert report["languages"]["hi"]["reference_length"] == 2
    assert report["languages"]["hi"]["wer"] == 0.5
    assert report["languages"]["tr"]["wer"] == 0
    assert normaliser_name("hi", "basic") == "whisper-basic"
    basic = measure_sensitivity(items)["basic"]["languages"]
    # three words of "हिन्दी" and two of "में" would be right or wrong each on its own
    assert basic["hi"] != 0.5
    assert basic["tr"] == 1.0


def test_characters_are_counted_as_readers_count_them():
    # हि न् दी, a space, में: five; with the mark missing one of them is wrong
    (count,) = count_characters([said("हिन्दी में", "हिन्दी मे", language="hi")])
    assert (count.errors, count.reference_length) == (1, 5)
    (swapped,) = count_characters([said("ẹ́", "ẹ̀", language="yo")])
    assert (swapped.errors, swapped.reference_length) == (1, 1)


def test_a_language_without_a_reference_word_has_no_rate_and_no_part_in_the_mean():
    report = measure([said("…", "noise", language="de", key="1"), said("a b", "a c", key="2")])
    assert report["languages"]["de"]["wer"] is None
    assert report["languages"]["de"]["insertions"] == 1
    assert report["mean_wer"] == 0.5
    assert report["pooled_wer"] == 1.0
    for items in ([], [said("", "x")]):
        empty = measure(items)
        assert empty["mean_wer"] is None
        json.dumps(empty, allow_nan=False)


def test_the_normaliser_chosen_shows_in_the_rate():
    items = [
        said("The colour is twenty.", "the color is 20", key="1"),
        said("Öffne die Tür!", "öffne die Tür", language="de", key="2"),
    ]
    report = measure_sensitivity(items)
    assert report["chosen"] == {"mean_wer": 0.0, "languages": {"de": 0.0, "en": 0.0}}
    assert report["basic"]["languages"] == {"de": 0.0, "en": 0.5}
    assert report["none"]["languages"] == {"de": pytest.approx(2 / 3), "en": 0.75}


def test_the_interval_holds_the_rate_and_narrows_with_more_utterances():
    def width(times: int) -> float:
        items = [said("a b c d", "a b c d" if i % 3 else "a x y d", language="de", key=str(i)) for i in range(30 * times)]
        report = measure(items)
        for rate, (low, high) in (
            (report["languages"]["de"]["wer"], report["languages"]["de"]["interval"]),
            (report["mean_wer"], report["mean_interval"]),
            (report["pooled_wer"], report["pooled_interval"]),
        ):
            assert low < rate < high
        low, high = report["languages"]["de"]["interval"]
        return high - low

    assert width(16) < 0.4 * width(1)


def test_the_interval_of_a_mean_is_narrower_than_those_of_its_languages():
    """Languages are drawn apart: two of equal size aren't one drawn twice."""
    items = [
        said("a b c d", "a x c d" if i % 2 else "a b c d", language=x, key=f"{x}{i}") for i in range(40) for x in ("de", "fr")
    ]
    report = measure(items)
    widths = [high - low for low, high in (report["languages"]["de"]["interval"], report["mean_interval"])]
    assert widths[1] == pytest.approx(widths[0] / 2**0.5, rel=0.1)


def test_the_report_is_deterministic():
    items = [said("a b c", "a b" if i % 2 else "a b c", key=str(i)) for i in range(9)]
    assert measure(items) == measure(items)


def test_a_paired_difference_is_surer_than_its_two_sides():
    first = [said("a b c d", "a b c d" if i % 2 else "x y c d", language="de", key=str(i)) for i in range(40)]
    # always one error more, on whatever utterance
    second = [said(item.reference, item.hypothesis.replace("d", "z"), language="de", key=item.key) for item in first]
    report = compare_hypotheses(first, second)
    assert (report["pooled"]["difference"], *report["pooled"]["interval"]) == pytest.approx((0.25, 0.25, 0.25))
    assert report["languages"]["de"]["p_value"] == report["mean"]["p_value"] == pytest.approx(2 / 2_001)


def test_equal_hypotheses_differ_by_nothing_with_certainty():
    items = [said("a b", "a b" if i % 2 else "a", key=str(i)) for i in range(10)]
    for part in ("mean", "pooled"):
        assert compare_hypotheses(items, list(reversed(items)))[part] == {"difference": 0, "interval": [0, 0], "p_value": 1}


def test_a_difference_is_told_by_language_in_the_mean_and_pooled():
    first = [said("a b c d", "a b c d", language="de" if i < 30 else "fr", key=str(i)) for i in range(40)]
    second = [said(x.reference, "a b c" if x.language == "fr" else x.reference, language=x.language, key=x.key) for x in first]
    report = compare_hypotheses(first, second)
    assert {language: part["difference"] for language, part in report["languages"].items()} == {"de": 0, "fr": 0.25}
    assert report["mean"]["difference"] == pytest.approx(0.125)
    assert report["pooled"]["difference"] == pytest.approx(10 / 160)


def test_a_paired_difference_of_other_utterances_is_refused():
    with pytest.raises(ValueError, match="same utterances"):
        compare_hypotheses([said("a", "a", key="1")], [said("a", "a", key="2")])


def test_pooling_nothing_has_no_rate():
    assert pool([]).rate != pool([]).rate


def test_several_test_sets_are_told_apart_and_one_is_told_as_ever():
    def say(key: str, language: str, written: str, dataset: str) -> Hypothesis:
        return Hypothesis(key, language, "turn the lamp on", written, dataset=dataset)

    near = [say(f"{n}", "en", "turn the lamp off", "near") for n in range(4)]
    # keys of other sets may be the same
    far = [say(f"{n}", "en", "turn it off", "far") for n in range(4)] + [say("5", "de", "turn the lamp on", "far")]
    report = measure(near + far)
    assert list(report["sets"]) == ["far", "near"]
    for name, part in (("near", near), ("far", far)):
        assert report["sets"][name] == measure([replace(item, dataset="") for item in part])
    assert report["sets"]["far"]["mean_wer"] == pytest.approx((0.75 + 0) / 2)
    assert report["sets"]["near"]["languages"]["en"]["wer"] == pytest.approx(0.25)
    whole = {name: value for name, value in report.items() if name != "sets"}
    assert whole == measure([replace(item, dataset="") for item in near + far])
    assert "sets" not in measure(near)
    assert "dataset" not in replace(near[0], dataset="").to_json()


def test_sets_with_a_key_in_common_are_compared_utterance_by_utterance():
    ours = [Hypothesis("1", "en", said, said, dataset=name) for name, said in (("a", "one two"), ("b", "three four"))]
    theirs = [replace(item, hypothesis="one two", dataset=f"z{9 - n}") for n, item in enumerate(ours)]
    assert compare_hypotheses(ours, theirs)["pooled"]["difference"] == pytest.approx(0.5)
