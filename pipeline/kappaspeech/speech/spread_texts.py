"""Transcripts of samples that are spread evenly over data sets, without their audio."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from kappaspeech.errors import DataError
from kappaspeech.speech.corpus import Corpus
from kappaspeech.speech.ranges import read_many
from kappaspeech.speech.sample_reader import SampleRef
from kappaspeech.speech.shards import parse_transcript
from kappaspeech.speech.source import Source, is_remote

# Transcripts that are read, and of shards that aren't on this machine; each is one small read.
_MOST_TEXTS = 20_000
_MOST_REMOTE_TEXTS = 500
_READ_TOGETHER = 256
_LONGEST_TEXT_BYTES = 1 << 16
Opener = Callable[[str], Source]


def read_spread_texts(
    corpora: Sequence[Corpus], open_shard: Opener, most_texts: int | None = None, *, needs_all: bool = False
) -> Iterator[tuple[SampleRef, str]]:
    """Yield samples of all `corpora` with their transcripts as they stand in the shards; one that can't be read is left out,
    unless `needs_all`: what is decided by these texts can't do without one that a server didn't give today.

    Of larger data a part is read, at most `most_texts`, which is the same part each time. Raises `DataError` for shards that have
    changed.
    """
    for corpus in corpora:
        most = _MOST_REMOTE_TEXTS if is_remote(corpus.table.shards[0][0]) else _MOST_TEXTS
        most = most if most_texts is None else min(most, most_texts)
        count = min(corpus.num_samples, max(1, most // len(corpora)))
        indices = [place * corpus.num_samples // count for place in range(count)]
        for start in range(0, count, _READ_TOGETHER):
            refs = [corpus.ref(index) for index in indices[start : start + _READ_TOGETHER]]
            refs = [ref for ref in refs if ref.entry.text_bytes <= _LONGEST_TEXT_BYTES]
            unlisted = [ref for ref in refs if ref.entry.listing is None]
            yield from ((ref, ref.entry.listing.transcript) for ref in refs if ref.entry.listing is not None)
            contents = read_many([(open_shard(ref.where), ref.entry.text_offset, ref.entry.text_bytes) for ref in unlisted])
            for ref, content in zip(unlisted, contents, strict=True):
                if isinstance(content, Exception):
                    if needs_all and isinstance(content, DataError):
                        raise content
                    continue
                try:
                    yield ref, parse_transcript(content, is_json=ref.entry.text_is_json)
                except ValueError:
                    continue
