"""Checkers of instructions: answers of which it is known whether they obey, of each kind some that do and some that don't."""

from __future__ import annotations

import re
import time

import pytest

from kappaspeech.evaluation.instruction_checks import KINDS, _count_sentences, parse_instruction
from tests.patience import patience

# kind, parameters, answers that obey, answers that don't
KNOWN = [
    ("words", {"most": 3}, ["one", "Don't e-mail me.", "eins – zwei"], ["one two three four", "eins, zwei, drei, vier"]),
    ("words", {"least": 2, "most": 2}, ["two words", "zwei Wörter!"], ["one", "three words here", "- 1"]),
    ("words", {"least": 0}, ["one"], ["", "  \n"]),
    # an umlaut may be a letter with a mark
    ("words", {"most": 1}, ["Gerat", "Gera\u0308t"], ["zwei Gera\u0308te"]),
    (
        "sentences",
        {"least": 2, "most": 2},
        ["It rains. Stay in!", "Es regnet z. B. heute. Komm „rein!“", "One… and two", "Pi is 3.5 or so. Yes?"],
        ["It rains, stay in!", "One. Two. Three.", "1. 2."],
    ),
    (
        "sentences",
        {"least": 2, "most": 2},
        ["Mr. Smith and Dr. J. Wu teach. They care.", "Can I? So do I.", "Frau Prof. Klein lehrt bzw. liest. Gut!", "A? Yes"],
        ["Mr. Smith teaches.", "Am I? So am I. Yes."],
    ),
    (
        "bullets",
        {"least": 2, "most": 2},
        ["- one\n- two", "Here you are:\n\n  * one\n  * two", "• eins\n• zwei"],
        ["- one", "- one\n- two\n- three", "-one\n-two", "**one**\n**two**", "1. one\n2. two", "one - two - three"],
    ),
    (
        "includes",
        {"words": ["rain", "best wishes"]},
        ["Best wishes from the RAIN."],
        ["best wishes, train", "best rain wishes", "rain"],
    ),
    ("includes", {"words": ["!", "C++"]}, ["Hello! It is C++17.", "c++ (!)"], ["Hello, C++", "Hello! It is ABC++"]),
    ("excludes", {"words": ["?", "u\u0308ben"]}, ["Hello!", "verüben"], ["Who?", "Wir üben.", "Wir u\u0308ben."]),
    ("lacks", {"text": "u\u0308"}, ["unter"], ["über", "u\u0308ber"]),
    ("excludes", {"words": ["brot", "garten"]}, ["Er backt Brötchen.", "Brotzeit"], ["Er backt BROT.", "im Garten"]),
    ("lacks", {"text": ","}, ["no comma at all"], ["one, two", ","]),
    ("lower_case", {}, ["all of it, 1 time", "straße, öl"], ["Not at all", "12", "ÖL"]),
    ("upper_case", {}, ["STOP! 5 METER", "GROßE STRAßE"], ["Stop", "5!", "ß"]),
    ("starts_with", {"text": "Always"}, ["Always close it.", '"always" is long'], ["Alwaysome", "Never always"]),
    ("starts_with", {"text": "„Ja“, sagte"}, ["„Ja“, sagte er."], ["Ja, sagte er.", "„Ja“, sagten sie."]),
    ("starts_with", {"text": "..."}, ["... and so on", "...and"], ["and so on", "!and"]),
    ("starts_with", {"text": "-"}, ["- one", "-one"], ["one", '"one"']),
    ("ends_with", {"text": "?"}, ["Who is it?", 'He asked: "Why?"'], ["It is me.", "Yes", "What?!"]),
    (
        "ends_with",
        {"text": "safe at home."},
        ["We are safe at home", "All were Safe at Home.”"],
        ["unsafe at home", "safe at home now"],
    ),
    (
        "language",
        {"language": "de"},
        ["Eine Brücke ist zum Überqueren da.", "Größe", "Der Arzt hilft dir, and that ist gut für dich."],
        ["A bridge is there to cross a river.", "Berlin", "42", "The word is für."],
    ),
    ("language", {"language": "en"}, ["We sleep because the body has to rest."], ["Wir schlafen, weil wir müde sind.", "OK"]),
    (
        "json",
        {},
        ['{"name": "crow"}', '```json\n{"a": [1]}\n```', "[1, 2]"],
        ['Here: {"a": 1}', "{'a': 1}", "5", '{"a": 1} done', "[" * 100_000],
    ),
    ("quoted", {}, ['"Good morning."', "„Guten Morgen.“", "„Na.”", "“Yes”"], ['"Half', 'He said "yes"', '""', "'single'"]),
    ("title", {}, ["<<The Lost Key>>", "Here it is: <<Fuchs>>."], ["<The Key>", "<<>>", "<< >>", "<<one\ntwo>>", "The Key"]),
    ("one_of", {"texts": ["?", "!"]}, ["?", "!"], ["...", "yes"]),
    ("one_of", {"texts": ["yes", "no"]}, ["yes", "No.", '"Yes"'], ["yes and no", "Yes, it is.", "nope"]),
]


SENTENCES = {
    "Am 3. Mai beginnt der Kurs. Er endet am 14. Juni.": 2,
    "Der 2. Weltkrieg endete am 8. 5. 1945. Das war im Mai.": 2,
    "Am 8.5.1945 war er zu Ende.": 1,
    "Im 19. Jahrhundert fuhr die 1. Eisenbahn. Heute fahren viele.": 2,
    "Zum 3. Mal kommt er zu seinem 80. Geburtstag!": 1,
    "Der Termin ist am 3. und am 4. März. Komm!": 2,
    "Heinrich der 8. hatte sechs Frauen. Wilhelm II. regierte bis 1918. Dann nicht mehr.": 3,
    "Karl V. war Kaiser. Wilhelm I. war es im II. Reich.": 2,
    "Es war im Jahr 1999. Dann kam er.": 2,
    "Ich wohne in Haus 12. Mein Bruder wohnt in Nr. 14. Er ist älter.": 3,
    "Wir nehmen das 2. Das ist besser.": 2,
    "1. Kaufe Milch.\n2. Rufe an.": 2,
    "Er kam am 3.": 1,
    "Er kam am 3.? Ja!": 2,
    "I am 12. She is 10.": 2,
    "He was born on May 3. It rained.": 2,
    "It ended in 1945. Then came peace.": 2,
    "World War II. It was long.": 2,
    "I have 3. You have 4. He has none.": 3,
    "we have room 3. open it. go in.": 3,
    "I have 3. 45 are left.": 2,
    "In Haus 12. Jungen spielen dort.": 2,
    "So am I. She isn't.": 2,
    "The U.S. team won. It was 3.5 to 2, i.e. close.": 2,
    "Mr. J. Smith Jr. met Dr. Wu. They talked.": 2,
    "He met Martin Luther King Jr. Then he left.": 2,
    "Sie trug die 7. Er die 8.": 2,
    "Sie aß die 3. Alle lachten.": 2,
    "Sie kam am 31. August. Beide blieben bis zum 2. Mai.": 2,
    "She was born in 1990. August came.": 2,
    "Es endete 1945. Mai war schön.": 2,
    "We have 5. iPhones are nice.": 2,
    "Das 5. iPhone war neu.": 1,
    "ab 3. mai ist zu. Der 2. folgt.": 3,
}


@pytest.mark.parametrize(("text", "count"), SENTENCES.items())
def test_sentences_are_counted_in_both_languages(text, count):
    assert _count_sentences(text) == count


@pytest.mark.parametrize("part", ["Ja. ", "." * 10 + "x", "am 3. Mai ", "zB.", "3" * 20 + ". mai ", ".)"])
def test_sentences_are_counted_in_a_time_that_grows_as_the_text_does(part):
    begun = time.process_time()
    _count_sentences(part * (400_000 // len(part)))
    _count_sentences("." * 400_000 + "x")
    assert time.process_time() - begun < patience(20)


def check(kind, parameters):
    return parse_instruction({"instruction": "do it", "checks": [{"kind": kind, **parameters}]}).checks[0]


@pytest.mark.parametrize(("kind", "parameters", "good", "bad"), KNOWN)
def test_known_answers_are_told_apart(kind, parameters, good, bad):
    known = check(kind, parameters)
    assert {answer: known.is_obeyed(answer) for answer in (*good, *bad)} == {
        **dict.fromkeys(good, True),
        **dict.fromkeys(bad, False),
    }


def test_each_kind_has_answers_of_both_sorts_and_obeys_no_empty_one():
    assert {kind for kind, _, good, bad in KNOWN if good and bad} == set(KINDS)
    assert not any(check(kind, parameters).is_obeyed("\n") for kind, parameters, _, _ in KNOWN)


def test_loosely_an_introduction_an_ending_and_bold_type_are_no_fault():
    known = check("one_of", {"texts": ["yes"]})
    for answer in ("Sure, here it is:\nyes", "yes\nI hope this helps!", "Sure:\n**Yes**\nAnything else?", "*yes*"):
        assert not known.is_obeyed(answer)
        assert known.is_obeyed_loosely(answer)
    assert not known.is_obeyed_loosely("Sure:\nWell:\nyes")
    # what obeys strictly does so loosely, also if it loses its bullets
    assert check("bullets", {"least": 2}).is_obeyed_loosely("* one\n* two")


def test_an_instruction_is_written_as_it_was_read():
    fields = {"instruction": "Say it twice.", "checks": [{"kind": "words", "least": 2}, {"kind": "json"}]}
    assert parse_instruction(fields).to_json() == fields


@pytest.mark.parametrize(
    ("checks", "cause"),
    [
        (None, "checks is no list of one check or more"),
        ([], "checks is no list of one check or more"),
        (["words"], "words is no check: its kind is none of words, sentences"),
        ([{"kind": "wrods"}], "is no check: its kind is none of words"),
        ([{"kind": ["words"]}], "is no check"),
        ([{"kind": "words"}], "words lacks least"),
        ([{"kind": "words", "exactly": 3}], "'exactly' is no parameter of words, whose are least, most"),
        ([{"kind": "json", "deep": 1}], "'deep' is no parameter of json, whose are none"),
        ([{"kind": "words", "most": -1}], "most of words is '-1', not a number from 0 on"),
        ([{"kind": "words", "most": True}], "most of words is 'True', not a number"),
        ([{"kind": "words", "least": 3, "most": 2}], "least of words is more than most"),
        ([{"kind": "includes"}], "includes lacks words"),
        ([{"kind": "includes", "words": "rain"}], "words of includes is 'rain', not a list of texts"),
        ([{"kind": "excludes", "words": [" "]}], "not a list of texts"),
        ([{"kind": "ends_with", "text": "\ud800"}], "half a character"),
        ([{"kind": "language", "language": "fr"}], "language of language is 'fr', not en or de"),
    ],
)
def test_what_can_not_be_checked_is_refused(checks, cause):
    with pytest.raises(ValueError, match=re.escape(cause)):
        parse_instruction({"instruction": "do it", "checks": checks})


@pytest.mark.parametrize(
    ("fields", "cause"),
    [({"instruction": 5}, "instruction is empty, or no text"), ({"instruction": "a", "group": "b"}, "'group' is no part of")],
)
def test_an_instruction_has_a_text_and_nothing_else_beside_its_checks(fields, cause):
    with pytest.raises(ValueError, match=cause):
        parse_instruction({"checks": [{"kind": "json"}], **fields})
