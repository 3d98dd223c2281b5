"""The overlap of training and test data: equal recordings and equal sentences."""

from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kappaspeech.errors import DataError
from kappaspeech.speech.corpus import Corpus
from kappaspeech.speech.sample_reader import SampleRef
from kappaspeech.speech.source import ReadOptions
from kappaspeech.speech.sources import open_source
from kappaspeech.speech.spread_texts import Opener, read_spread_texts

# Clips of one size and length that are compared byte by byte, of a data set.
_MOST_COMPARED = 256
_MOST_OPEN = 512
_NUM_NAMED = 3
_Digest = tuple[str, float, float | None]


@dataclass(frozen=True)
class Overlap:
    """`num_sentences` of `num_looked_at` test samples say what one of `num_train_looked_at` training samples says (`sentences`
    are the first of them), and `num_recordings` of all `num_test` are the same audio (`recordings` names the first)."""

    num_test: int
    num_looked_at: int
    num_train_looked_at: int
    num_sentences: int
    num_recordings: int
    sentences: tuple[str, ...]
    recordings: tuple[str, ...]

    @property
    def found(self) -> str:
        """The overlap in words; "" if there is none."""
        parts = []
        if self.num_recordings:
            named = ", ".join(self.recordings)
            parts.append(f"{self.num_recordings} of {self.num_test} test recordings are trained on (first: {named})")
        if self.num_sentences:
            named = ", ".join(f"'{text}'" for text in self.sentences)
            looked = f"{self.num_looked_at} test sentences are among {self.num_train_looked_at} of training"
            parts.append(f"{self.num_sentences} of {looked} (first: {named})")
        return "; ".join(parts)


def find_overlap(
    train: Sequence[Corpus], test: Sequence[Corpus], read: ReadOptions | None = None, *, most_texts: int | None = None
) -> Overlap:
    """Compare audio by the indices, and byte by byte if those agree, and transcripts by their words, of a part spread evenly
    over larger data, of `most_texts` at most. A text that can't be read is nobody's overlap. Raises `DataError` for shards that
    have changed.
    """
    open_shard: Opener = lru_cache(maxsize=_MOST_OPEN)(lambda where: open_source(where, read or ReadOptions()))
    recordings = _find_recordings(train, test, open_shard)
    said = list(_read_words(test, open_shard, most_texts))
    wanted, num_train = set(said), 0
    trained: set[str] = set()
    for words in _read_words(train, open_shard, most_texts):
        num_train += 1
        if words in wanted:
            trained.add(words)
    shared = [words for words in said if words in trained]
    return Overlap(
        num_test=sum(corpus.num_samples for corpus in test),
        num_looked_at=len(said),
        num_train_looked_at=num_train,
        num_sentences=len(shared),
        num_recordings=len(recordings),
        sentences=tuple(dict.fromkeys(shared))[:_NUM_NAMED],
        recordings=tuple(recordings[:_NUM_NAMED]),
    )


def _read_words(corpora: Sequence[Corpus], open_shard: Opener, most_texts: int | None) -> Iterator[str]:
    """Yield the words of samples that are spread evenly over `corpora`, without case and punctuation."""
    for _, text in read_spread_texts(corpora, open_shard, most_texts):
        if words := plain_words(text):
            yield words


def plain_words(text: str) -> str:
    """The words of a text without case and punctuation: what makes two texts the same."""
    letters = (c if unicodedata.category(c)[0] in "LMN" else " " for c in unicodedata.normalize("NFKC", text.casefold()))
    return " ".join("".join(letters).split())


def _find_recordings(train: Sequence[Corpus], test: Sequence[Corpus], open_shard: Opener) -> list[str]:
    """Keys of test samples whose audio is in the training data, byte for byte."""
    heads = np.unique(np.concatenate([_heads(corpus) for corpus in test]))
    candidates: dict[int, list[SampleRef]] = {}
    for corpus in train:
        known = _heads(corpus)
        for index in np.flatnonzero(np.isin(known, heads))[:_MOST_COMPARED].tolist():
            candidates.setdefault(int(known[index]), []).append(corpus.ref(index))

    @cache
    def trained(head: int) -> set[_Digest | None]:
        return {_digest(ref, open_shard) for ref in candidates[head]}

    found: list[str] = []
    num_compared = 0
    for corpus in test:
        known = _heads(corpus)
        for index in np.flatnonzero(np.isin(known, np.array(list(candidates), dtype=np.int64))).tolist():
            num_compared += 1
            if num_compared > _MOST_COMPARED:
                return found
            ref = corpus.ref(index)
            digest = _digest(ref, open_shard)
            if digest is not None and digest in trained(int(known[index])):
                found.append(ref.entry.key)
    return found


def _heads(corpus: Corpus) -> NDArray[np.int64]:
    """(N,): size and length of each clip in one number. Other audio is hardly ever alike in both, unless it isn't compressed."""
    seconds: NDArray[Any] = np.ascontiguousarray(corpus.column("seconds"))
    heads: NDArray[np.int64] = (corpus.column("audio_bytes") << 32) ^ seconds.view(np.uint32).astype(np.int64)
    return heads


def _digest(ref: SampleRef, open_shard: Opener) -> _Digest | None:
    """Tell audio from other audio: a digest of its file, and the part of it. None if it can't be read."""
    listing = ref.entry.listing
    try:
        content = open_shard(ref.where).read(ref.entry.audio_offset, ref.entry.audio_bytes)
    except (DataError, EOFError):
        return None
    return hashlib.sha256(content).hexdigest(), *((listing.begin_seconds, listing.seconds) if listing else (0.0, None))
