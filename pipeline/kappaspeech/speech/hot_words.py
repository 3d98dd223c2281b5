"""Hot words: words that the prompt names because they may be said, and which of a clip's it names in training.

As in contextual biasing by prompts (Qwen3-ASR's context, SLAM-ASR's hot words): a list holds rare words of the transcript among
distractors from elsewhere, and sometimes distractors alone, so that the model learns to listen before it believes the list.
"""

from __future__ import annotations

import os
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from kappaspeech.artefacts import digest_json
from kappaspeech.config.data_config import HotWordsConfig
from kappaspeech.errors import DataError
from kappaspeech.speech.augment import generator
from kappaspeech.speech.corpus import Corpus
from kappaspeech.speech.normalisers import normalise_text
from kappaspeech.speech.source import ReadOptions
from kappaspeech.speech.sources import open_source
from kappaspeech.speech.spread_texts import read_spread_texts
from kappaspeech.speech.text_files import read_lines

# keeps the draws apart from those of the clip's augmentation, which have the same counter
_STREAM = 0x686F74
# a transcript's words that a list may give away
_MOST_GIVEN_AWAY = 2
_MOST_OPEN = 512


@dataclass(frozen=True)
class Vocabulary:
    """The words of training transcripts by language: those that are `common`, without case, and the `rare` ones, as written and
    in order."""

    common: Mapping[str, frozenset[str]]
    rare: Mapping[str, tuple[str, ...]]

    @property
    def digest(self) -> str:
        """A digest of both."""
        return digest_json([{name: sorted(words) for name, words in self.common.items()}, dict(self.rare)])


@dataclass(frozen=True)
class HotWords:
    """The options of `data.hot_words`, with the vocabulary of the data."""

    options: HotWordsConfig
    vocabulary: Vocabulary

    @property
    def fingerprint(self) -> dict[str, Any]:
        """Digest of all that decides the words in a clip's prompt."""
        return {"options": self.options.model_dump(), "vocabulary": self.vocabulary.digest}

    def choose(self, transcript: str, language: str, counter: Sequence[int]) -> tuple[str, ...]:
        """The hot words of a clip's prompt; none for all clips but `share`, and if there is nothing to choose from.

        They are a function of the arguments alone. `counter` is the clip's place in the training: the seed, the step and the
        sample, so that a clip has other words in each epoch, whichever rank reads it.
        """
        options, random = self.options, generator(_STREAM, *counter)
        if random.random() >= options.share:
            return ()
        said = split_words(transcript)
        own: list[str] = []
        if random.random() >= options.only_distractors:
            common = self.vocabulary.common.get(language, frozenset())
            candidates = list(dict.fromkeys(word for word in said if word.casefold() not in common))
            most = min(options.per_clip, len(said) // _MOST_GIVEN_AWAY, len(candidates))
            own = _draw(candidates, int(random.integers(1, most + 1)) if most else 0, random)
        others = self.vocabulary.rare.get(language, ())
        num_others = min(int(random.integers(0 if own else min(1, options.distractors), options.distractors + 1)), len(others))
        spoken = {word.casefold() for word in said}
        distractors = [word for word in _draw(others, num_others, random) if word.casefold() not in spoken]
        chosen = [*own, *distractors]
        return tuple(chosen[place] for place in random.permutation(len(chosen)))


def _draw(words: Sequence[str], count: int, random: np.random.Generator) -> list[str]:
    return [words[place] for place in random.choice(len(words), size=count, replace=False)] if count else []


def split_words(text: str) -> list[str]:
    """The words of a text as they are written, without the punctuation around them."""
    return [word for part in text.split() if (word := _strip(part))]


def _strip(part: str) -> str:
    inside = [place for place, sign in enumerate(part) if unicodedata.category(sign)[0] in "LMN"]
    return part[inside[0] : inside[-1] + 1] if inside else ""


def find_vocabulary(texts: Iterable[tuple[str, str]], *, max_text_share: float) -> Vocabulary:
    """The vocabulary of (language, transcript) pairs: a word is rare if at most this share of its language's transcripts has it.

    One transcript's words may always be rare, however few there are.
    """
    num_texts: Counter[str] = Counter()
    counts: dict[str, Counter[str]] = {}
    written: dict[str, dict[str, str]] = {}
    for language, text in texts:
        num_texts[language] += 1
        words = {word.casefold(): word for word in split_words(text)}
        counts.setdefault(language, Counter()).update(words.keys())
        for folded, word in words.items():
            written.setdefault(language, {}).setdefault(folded, word)
    limits = {language: max(1.0, max_text_share * num_texts[language]) for language in counts}
    return Vocabulary(
        {name: frozenset(word for word, count in found.items() if count > limits[name]) for name, found in counts.items()},
        {
            name: tuple(sorted(written[name][word] for word, count in found.items() if count <= limits[name]))
            for name, found in counts.items()
        },
    )


def read_vocabulary(corpora: Sequence[Corpus], read: ReadOptions, *, max_text_share: float) -> Vocabulary:
    """The vocabulary of training data, by a part of its transcripts that is spread evenly over it. Raises `DataError`, also if
    no word is rare."""
    open_shard = lru_cache(maxsize=_MOST_OPEN)(lambda where: open_source(where, read))
    texts = (
        (ref.entry.language, normalise_text(text, ref.entry.language, ref.normalization))
        for ref, text in read_spread_texts(corpora, open_shard, needs_all=True)
    )
    found = find_vocabulary(texts, max_text_share=max_text_share)
    if not any(found.rare.values()):
        raise DataError(
            f"data.hot_words finds no rare word: each is in more than {max_text_share:g} of the transcripts. Raise "
            "max_text_share."
        )
    return found


# of a name that is meant to be a file's; a slash is in words too: AC/DC
_TEXT_ENDINGS = (".txt", ".csv", ".tsv", ".lst")


def read_hot_words(given: str | None) -> tuple[str, ...]:
    """The hot words that a user gave: a file's words or phrases, one a line, or a list with commas; each once, in order.

    Raises `DataError` if a file can't be read, or there is no word.
    """
    if given is None:
        return ()
    is_file = os.path.exists(given)
    if not is_file and given.endswith(_TEXT_ENDINGS):
        raise DataError(
            f"--hot-words is {given!r}, and there is no such file. Give one that is there, or words with commas between."
        )
    parts = read_lines(Path(given)) if is_file else given.split(",")
    words = tuple(dict.fromkeys(word for part in parts if (word := " ".join(part.split()))))
    if not words:
        raise DataError(f"--hot-words is {given!r}, {'a file ' if is_file else ''}without a word.")
    return words
