"""The fixed part of a test set."""

from __future__ import annotations

from collections import Counter

from kappaspeech.speech.held_out import choose_subset

SAMPLES = [*(("en", f"en/{i}") for i in range(90)), *(("de", f"de/{i}") for i in range(20)), ("fr", "fr/0")]


def chosen(count: int, samples: list[tuple[str, str]] = SAMPLES) -> list[tuple[str, str]]:
    return [samples[i] for i in choose_subset(samples, count)]


def test_a_part_has_the_same_share_of_each_language_as_far_as_it_goes():
    assert Counter(language for language, _ in chosen(31)) == {"en": 15, "de": 15, "fr": 1}
    assert Counter(language for language, _ in chosen(60)) == {"en": 39, "de": 20, "fr": 1}


def test_a_part_is_the_same_whatever_the_order_of_the_data():
    assert set(chosen(30)) == set(chosen(30, SAMPLES[::-1]))


def test_a_part_is_spread_over_the_data_and_holds_every_smaller_one():
    numbers = sorted(int(key.split("/")[1]) for language, key in chosen(41) if language == "en")
    assert len(numbers) == 20
    assert numbers[-1] - numbers[0] > 60
    assert set(chosen(30)) < set(chosen(41))


def test_a_part_as_large_as_the_whole_is_the_whole():
    assert chosen(len(SAMPLES)) == chosen(10_000) == SAMPLES
