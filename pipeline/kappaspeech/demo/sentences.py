"""Spoken commands from a small grammar, in English and German, and splits that keep every sentence on one side.

Slots combine freely, so a model can't learn the test sentences by heart, while every word in them occurs in training.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from kappaspeech.errors import InputError

_EN_COLOURS = ("red", "green", "blue", "white", "yellow", "black")
_EN_ROOMS = ("kitchen", "garden", "bathroom", "office", "hallway", "bedroom", "garage")
_EN_NUMBERS = ("three", "four", "five", "seven", "nine", "twelve", "twenty")
_DE_NUMBERS = ("drei", "vier", "fünf", "sieben", "neun", "zwölf", "zwanzig")
_DE_COLOURS = ("rot", "grün", "blau", "weiß", "gelb", "schwarz")


@dataclass(frozen=True)
class _Noun:
    """A German noun with what agreement needs: its definite article in the accusative and its adjectives' ending."""

    word: str
    article: str
    ending: str


_DE_SWITCHED = (_Noun("Lampe", "die", "e"), _Noun("Licht", "das", "e"), _Noun("Ventilator", "den", "en"))
_DE_OPENED = (_Noun("Tür", "die", "e"), _Noun("Fenster", "das", "e"), _Noun("Vorhang", "den", "en"))
_DE_CARRIED = (
    _Noun("Tasche", "die", "e"),
    _Noun("Buch", "das", "e"),
    _Noun("Koffer", "den", "en"),
    _Noun("Flasche", "die", "e"),
    _Noun("Schlüssel", "den", "en"),
)
# (where something is, where it is brought)
_DE_ROOMS = (
    ("in der Küche", "in die Küche"),
    ("im Garten", "in den Garten"),
    ("im Bad", "ins Bad"),
    ("im Büro", "ins Büro"),
    ("im Flur", "in den Flur"),
    ("im Schlafzimmer", "ins Schlafzimmer"),
    ("in der Garage", "in die Garage"),
)


def _english(pick: Callable[[Sequence[str]], str]) -> tuple[str, ...]:
    colour, room, number = pick(_EN_COLOURS), pick(_EN_ROOMS), pick(_EN_NUMBERS)
    return (
        f"Turn {pick(('on', 'off'))} the {colour} {pick(('lamp', 'light', 'fan'))} in the {room}",
        f"{pick(('Open', 'Close'))} the {colour} {pick(('door', 'window', 'curtain'))} in the {room}",
        f"Bring the {colour} {pick(('bag', 'book', 'suitcase', 'bottle', 'key'))} to the {room}",
        f"Set the {pick(('heating', 'music', 'clock'))} in the {room} to {number}",
        f"Wake {pick(('Anna', 'Peter', 'Maria', 'Thomas'))} in the {room} at {number}",
    )


def _german(pick: Callable[[Sequence[str]], str], choose: Callable[[Sequence[_Noun]], _Noun]) -> tuple[str, ...]:
    where, whither = _DE_ROOMS[[room[0] for room in _DE_ROOMS].index(pick([room[0] for room in _DE_ROOMS]))]
    number = pick(_DE_NUMBERS)

    def describe(noun: _Noun) -> str:
        return f"{noun.article} {pick(_DE_COLOURS)}{noun.ending} {noun.word}"

    return (
        f"Schalte {describe(choose(_DE_SWITCHED))} {where} {pick(('ein', 'aus'))}",
        f"{pick(('Öffne', 'Schließe'))} {describe(choose(_DE_OPENED))} {where}",
        f"Bringe {describe(choose(_DE_CARRIED))} {whither}",
        f"Stelle {pick(('die Heizung', 'die Musik', 'die Uhr'))} {where} auf {number}",
        f"Wecke {pick(('Anna', 'Peter', 'Maria', 'Thomas'))} {where} um {number}",
    )


def make_sentences(language: str, count: int, *, seed: int) -> list[str]:
    """`count` different commands of five to eight words in `language` ("en" or "de"), the same for the same seed.

    Raises `InputError` if the grammar hasn't that many.
    """
    source = random.Random(f"{language}/{seed}")
    if language not in ("en", "de"):
        raise InputError(f"There is no grammar for {language!r}: it is 'en' or 'de'.")
    found: dict[str, None] = {}
    for _ in range(200 * count):
        options = _english(source.choice) if language == "en" else _german(source.choice, source.choice)
        # templates with more slots have more sentences: choosing the template evenly keeps each word common
        found.setdefault(source.choice(options))
        if len(found) == count:
            return list(found)
    raise InputError(f"The {language} grammar has only about {len(found)} sentences; {count} were asked for.")


def words_of(sentence: str) -> list[str]:
    """The words of a sentence, lower-case and without punctuation: what makes two sentences the same."""
    return re.findall(r"\w+", sentence.lower())


def split_by_sentence(
    items: Iterable[tuple[str, str]], *, test_fraction: float, seed: int
) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    """Split (file, transcript) pairs into train and test so that no sentence, in any recording, is on both sides.

    Case and punctuation don't make a sentence another one. About `test_fraction` of the *sentences* go to test.
    """
    groups: dict[str, list[tuple[str, str]]] = {}
    for file, text in items:
        groups.setdefault(" ".join(words_of(text)), []).append((file, text))
    order = sorted(groups)
    random.Random(seed).shuffle(order)
    num_test = round(test_fraction * len(order))
    test = [item for sentence in order[:num_test] for item in groups[sentence]]
    train = [item for sentence in order[num_test:] for item in groups[sentence]]
    return sorted(train), sorted(test)
