"""Text that steps repeat beside their speech: which pieces a step holds, and on which rank."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kappaspeech.artefacts import digest_json
from kappaspeech.config.replay_config import MOST_MEASURED
from kappaspeech.config.run_config import RunConfig
from kappaspeech.errors import ConfigError, DataError, InputError
from kappaspeech.evaluation.forgetting import cut_windows, read_texts
from kappaspeech.model.llm import load_tokenizer
from kappaspeech.speech.overlap import plain_words

# the schedule of speech has streams 0 and 1
_REPLAY_STREAM = 2
_KEPT_ORDERS = 64
# shorter lines are headings and greetings, which stand in many texts
_FEWEST_WORDS = 4


@dataclass(frozen=True)
class Replay:
    """Pieces of text as token ids, the languages' one after another, `counts` of each; `texts_per_step` of them in each step."""

    pieces: tuple[tuple[int, ...], ...]
    counts: tuple[int, ...]
    texts_per_step: int
    seed: int

    @property
    def fingerprint(self) -> str:
        return digest_json({"pieces": self.pieces, "counts": self.counts, "each": self.texts_per_step, "seed": self.seed})

    def of_step(self, step: int) -> list[int]:
        """Places of a step's pieces: a function of texts, seed and step alone."""
        return choose_pieces(self.counts, first=step * self.texts_per_step, number=self.texts_per_step, seed=self.seed)

    def of_micro_batch(self, step: int, index: int, *, micro_batches_per_step: int) -> list[int]:
        """The part of them that stands beside a step's micro-batch; each has a rank, whatever the number of ranks."""
        return self.of_step(step)[index::micro_batches_per_step] if index < micro_batches_per_step else []

    def num_tokens(self, step: int) -> int:
        """The number of tokens that a step's pieces foretell."""
        return sum(len(self.pieces[place]) - 1 for place in self.of_step(step))

    def reached(self, num_steps: int) -> list[int]:
        """Places of the pieces that so many steps hold."""
        if num_steps * self.texts_per_step >= len(self.counts) * max(self.counts):
            return list(range(len(self.pieces)))
        return sorted({place for step in range(num_steps) for place in self.of_step(step)})


def choose_pieces(counts: Sequence[int], *, first: int, number: int, seed: int) -> list[int]:
    """Draws `first` to `first` + `number` of an endless sequence: places among pieces that lie as `counts` says.

    Sources take turns, so that each has an exact share; each gives all its pieces in random order before any comes again.
    """
    starts = np.concatenate([[0], np.cumsum(counts)])
    places = []
    for draw in range(first, first + number):
        turn, source = divmod(draw, len(counts))
        epoch, index = divmod(turn, counts[source])
        places.append(int(starts[source] + _order(counts[source], seed, source, epoch)[index]))
    return places


@lru_cache(maxsize=_KEPT_ORDERS)
def _order(count: int, seed: int, source: int, epoch: int) -> NDArray[np.int64]:
    sequence = np.random.SeedSequence([seed & (2**64 - 1), _REPLAY_STREAM, source, epoch])
    return np.random.Generator(np.random.Philox(sequence)).permutation(count)


def read_replay(config: RunConfig, tokenizer: Any) -> Replay | None:
    """Read the texts that `config` replays; None if it replays none. Raises `DataError`, `ConfigError` for measured ones."""
    options = config.replay
    if options is None:
        return None
    texts = {language: read_texts(Path(path)) for language, path in options.texts.items()}
    refuse_measured(texts, {language: read_texts(Path(path)) for language, path in config.data.text.items()})
    pieces = [cut_windows(tokenizer, lines, most_tokens=options.max_tokens) for lines in texts.values()]
    for language, cut in zip(texts, pieces, strict=True):
        if not cut:
            raise DataError(f"{options.texts[language]} (replay.texts) is too short: no text of it has two tokens.")
    counts = tuple(map(len, pieces))
    return Replay(tuple(piece for cut in pieces for piece in cut), counts, options.texts_per_step, config.seed)


def read_measured(config: RunConfig, tokenizer: Any) -> dict[str, list[tuple[int, ...]]]:
    """The pieces of data.text on which a forgetting budget is measured, spread evenly over each; none without a budget."""
    if config.replay is None or config.replay.forgetting_budget_nats is None:
        return {}
    measured = {}
    for language, path in config.data.text.items():
        cut = cut_windows(tokenizer, read_texts(Path(path)))
        if not cut:
            raise DataError(f"{path} (data.text) is too short to be measured: no text of it has two tokens.")
        measured[language] = choose_evenly(cut, MOST_MEASURED)
    return measured


def count_anchored(replay: Replay | None, measured: Mapping[str, Sequence[Sequence[int]]], *, num_steps: int) -> int:
    """The number of tokens of which a run of so many steps keeps the base's states, if an anchor holds it."""
    if replay is None:
        return 0
    pieces = [replay.pieces[place] for place in replay.reached(num_steps)]
    return sum(len(piece) - 1 for cut in (pieces, *measured.values()) for piece in cut)


def foresee_anchored(config: RunConfig) -> int | None:
    """The same before a run, 0 if no anchor holds it; None if the LLM's tokenizer or a text isn't here, or can't be used."""
    if config.replay is None or not config.replay.anchor_weight:
        return 0
    try:
        tokenizer = load_tokenizer(config.model.llm)
        replay, measured = read_replay(config, tokenizer), read_measured(config, tokenizer)
    except InputError:
        return None
    return count_anchored(replay, measured, num_steps=config.training.num_steps)


def choose_evenly(pieces: Sequence[tuple[int, ...]], most: int) -> list[tuple[int, ...]]:
    """Some of the pieces, so many at most, spread evenly over them."""
    count = min(len(pieces), most)
    return [pieces[place * len(pieces) // count] for place in range(count)]


def refuse_measured(
    replayed: Mapping[str, Sequence[str]], measured: Mapping[str, Sequence[str]], *, key: str = "replay.texts"
) -> None:
    """Raise `ConfigError` if a line of texts that forgetting is measured on is trained on as well."""
    wanted = {words for lines in measured.values() for words in _lines(lines)}
    shared = [words for lines in replayed.values() for words in _lines(lines) if words in wanted]
    if shared:
        raise ConfigError(
            f"{len(shared)} line(s) of {key} are in data.text, too (first: '{shared[0][:80]}'). Text that is trained on "
            "can't show what is forgotten: take them out of one of the two."
        )


def _lines(texts: Sequence[str]) -> list[str]:
    lines = (plain_words(line) for text in texts for line in text.split("\n"))
    return [words for words in lines if words.count(" ") + 1 >= _FEWEST_WORDS]
