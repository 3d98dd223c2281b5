"""Word edits with compounds: kaldialign's against an oracle in plain Python, and against what a person counts."""

from __future__ import annotations

import itertools
from functools import cache

import pytest

from kappaspeech.evaluation.alignment import WerCount, align_characters, align_words
from kappaspeech.evaluation.wer import Hypothesis, measure

MOST_JOINED = 4


def fewest_errors(reference: list[str], hypothesis: list[str]) -> int:
    """Levenshtein's distance in words, in which words of one side match one of the other that is written as they are together."""

    @cache
    def cost(i: int, j: int) -> int:
        if i == 0 or j == 0:
            return i + j
        tries = [cost(i - 1, j) + 1, cost(i, j - 1) + 1, cost(i - 1, j - 1) + (reference[i - 1] != hypothesis[j - 1])]
        for number in range(2, MOST_JOINED + 1):
            if number <= i and "".join(reference[i - number : i]) == hypothesis[j - 1]:
                tries.append(cost(i - number, j - 1))
            if number <= j and "".join(hypothesis[j - number : j]) == reference[i - 1]:
                tries.append(cost(i - 1, j - number))
        return min(tries)

    return cost(len(reference), len(hypothesis))


@pytest.mark.parametrize(
    ("reference", "hypothesis", "s", "d", "i", "words"),
    [
        ("die haustür klemmt", "die haus tür klemmt", 0, 0, 0, 3),
        ("das rind fleisch", "das rindfleisch", 0, 0, 0, 3),
        ("donaudampfschiff", "donau dampf schiff", 0, 0, 0, 1),
        ("die haustür klemmt", "die haus tor klemmt", 1, 0, 1, 3),
        ("haustür", "tür haus", 1, 0, 1, 1),
        ("a b c", "a x c", 1, 0, 0, 3),
        ("a b c", "a c", 0, 1, 0, 3),
        ("a b", "", 0, 2, 0, 2),
        ("", "a b", 0, 0, 2, 0),
        ("", "", 0, 0, 0, 0),
    ],
)
def test_a_compound_is_right_written_together_or_apart(reference, hypothesis, s, d, i, words):
    assert align_words(reference, hypothesis, "kaldialign") == WerCount(s, d, i, words)


def test_errors_are_the_fewest_that_an_oracle_finds():
    texts = [" ".join(words) for length in range(1, 5) for words in itertools.product(("a", "b", "ab", "aab"), repeat=length)]
    # every 7th against every 11th: 1,500 pairs of all lengths
    for reference, hypothesis in itertools.product(texts[::7], texts[::11]):
        count = align_words(reference, hypothesis, "kaldialign")
        assert count.errors == fewest_errors(reference.split(), hypothesis.split()), (reference, hypothesis)
        assert count.reference_length == len(reference.split())


def test_without_compounds_both_aligners_count_as_many_errors():
    texts = [" ".join(words) for length in range(1, 4) for words in itertools.product("abc", repeat=length)]
    for reference, hypothesis in itertools.product(texts[::3], texts[::2]):
        theirs = align_words(reference, hypothesis, "kaldialign")
        # "a b" joined is no text here, so nothing is merged
        assert theirs.errors == align_words(reference, hypothesis).errors


def test_a_report_names_what_counted_its_words_and_counts_characters_as_before():
    items = [Hypothesis("1", "de", "Die Haustür klemmt.", "die Haus Tür klemmt")]
    plain, merged = measure(items), measure(items, aligner="kaldialign")
    assert (plain["aligner"], merged["aligner"]) == ("jiwer", "kaldialign, compounds merged")
    assert (plain["mean_wer"], merged["mean_wer"]) == (pytest.approx(2 / 3), 0)
    assert merged["languages"]["de"]["normaliser"] == "whisper-basic"
    assert plain["mean_cer"] == merged["mean_cer"] > 0


def test_characters_with_marks_are_one_each():
    assert align_characters("में", "मे") == WerCount(1, 0, 0, 1)
