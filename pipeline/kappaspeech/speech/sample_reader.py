"""Samples read from their shards, checked and decoded."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

from kappaspeech.errors import DataError
from kappaspeech.speech.listings import decode_listed
from kappaspeech.speech.normalisers import TextNormalization, normalise_text
from kappaspeech.speech.ranges import Part, begin_many, read_many, wait_for
from kappaspeech.speech.samples import AudioSample, BadSampleError, decode
from kappaspeech.speech.shards import SampleEntry, changed, check_header, digest_head, head_bytes, parse_transcript
from kappaspeech.speech.source import ReadOptions, Source, is_remote
from kappaspeech.speech.sources import open_source
from kappaspeech.speech.tar_members import HEADER_BYTES

# Audio and text that lie this near to each other are read at once.
_LARGEST_GAP_BYTES = 1 << 16
_MAX_OPEN_SOURCES = 512


BegunSample = list[Part]
"""A sample's `_ranges`, asked for."""


@dataclass(frozen=True)
class SampleRef:
    """A sample to load: its shard, where in it, how its text is written, the counter of its random numbers, its name in the
    feature cache, the shard's stamp now, "" if that isn't known, and its data set's own instruction and name."""

    where: str
    entry: SampleEntry
    normalization: TextNormalization = "none"
    counter: tuple[int, ...] = ()
    cache_name: str | None = None
    shard_stamp: str = ""
    instruction: str | None = None
    dataset: str = ""


class SampleReader:
    """Reads samples of any shards; keeps the last few hundred open."""

    def __init__(self, options: ReadOptions) -> None:
        self._open = lru_cache(maxsize=_MAX_OPEN_SOURCES)(lambda where: open_source(where, options))

    def source(self, ref: SampleRef) -> Source:
        """The open shard of a sample."""
        return self._open(ref.where)

    def begin(self, refs: Sequence[SampleRef]) -> list[BegunSample]:
        """Ask for the `_ranges` of each sample; neighbours in a remote shard come in one request."""
        places = [_ranges(ref.entry) for ref in refs]
        pairs = zip(refs, places, strict=True)
        parts = iter(begin_many([(self.source(ref), begin, end - begin) for ref, ranges in pairs for begin, end in ranges]))
        return [[next(parts) for _ in ranges] for ranges in places]

    def read(self, refs: Sequence[SampleRef], begun: Sequence[BegunSample] | None = None) -> list[AudioSample | BadSampleError]:
        """Each sample, decoded, or what is wrong with it. Raises `DataError` if a shard can't be had at all.

        `begun` is what `begin` returned for them, if they were asked for before.
        """
        samples: list[AudioSample | BadSampleError] = []
        for ref, sample in zip(refs, self.begin(refs) if begun is None else begun, strict=True):
            try:
                with sample_errors():
                    samples.append(_parse(ref, _ranges(ref.entry), self.fetch(ref, sample)))
            except BadSampleError as error:
                samples.append(error)
        return samples

    def read_transcripts(self, refs: Sequence[SampleRef]) -> list[str | BadSampleError | DataError]:
        """Each sample's transcript alone, as `read` has it, or why it can't be had."""
        places = [None if ref.entry.listing is not None else _text_range(ref.entry) for ref in refs]
        pairs = zip(refs, places, strict=True)
        parts = iter(read_many([(self.source(ref), place[0], place[1] - place[0]) for ref, place in pairs if place is not None]))
        texts: list[str | BadSampleError | DataError] = []
        for ref, place in zip(refs, places, strict=True):
            try:
                with sample_errors():
                    texts.append(_parse_text(ref, [] if place is None else [place], [] if place is None else [next(parts)]))
            except (BadSampleError, DataError) as error:
                texts.append(error)
        return texts

    def fetch(self, ref: SampleRef, begun: BegunSample) -> list[bytes | Exception]:
        """The `_ranges` of a sample that were begun. Raises `DataError` if they are of another sample than its index noted."""
        parts = wait_for(begun)
        # a local shard was compared with its index as a whole
        if not ref.entry.head_digest or not is_remote(ref.where) or _is_itself(ref.entry, parts):
            return parts
        # an answer may have been damaged on its way
        parts = wait_for(self.begin([ref])[0])
        if not _is_itself(ref.entry, parts):
            raise changed(ref.where)
        return parts


def _is_itself(entry: SampleEntry, parts: Sequence[bytes | Exception]) -> bool:
    """Return whether a sample's audio begins as its index noted; so does what couldn't be read, which has an error of its own."""
    begin, part = next(
        (begin, part)
        for (begin, end), part in zip(_ranges(entry), parts, strict=True)
        if begin <= entry.audio_offset - HEADER_BYTES < end
    )
    start = entry.audio_offset - HEADER_BYTES - begin
    return isinstance(part, Exception) or digest_head(part[start : start + head_bytes(entry)]) == entry.head_digest


@contextlib.contextmanager
def sample_errors() -> Iterator[None]:
    """Turn every error of one sample into a `BadSampleError`, so that it is counted and costs no more than itself. A `DataError`
    passes: it concerns the whole shard."""
    try:
        yield
    except (BadSampleError, DataError):
        raise
    except Exception as error:
        raise BadSampleError("unusable", f"{type(error).__name__}: {error}") from error


def _ranges(entry: SampleEntry) -> list[tuple[int, int]]:
    """The byte ranges to read for a sample, tar headers included: one if its members are neighbours, else two."""
    audio = entry.audio_offset - HEADER_BYTES, entry.audio_offset + entry.audio_bytes
    if entry.listing is not None:
        return [audio]
    text = _text_range(entry)
    first, second = sorted((audio, text))
    is_near = second[0] - first[1] <= _LARGEST_GAP_BYTES
    return [(first[0], max(first[1], second[1]))] if is_near else [audio, text]


def _text_range(entry: SampleEntry) -> tuple[int, int]:
    return entry.text_offset - HEADER_BYTES, entry.text_offset + entry.text_bytes


def _parse(ref: SampleRef, ranges: Sequence[tuple[int, int]], parts: Sequence[bytes | Exception]) -> AudioSample:
    entry = ref.entry
    content = _member(ref, ranges, parts, entry.audio_offset, entry.audio_bytes)
    if entry.listing is not None:
        waveform = decode_listed(content, entry.listing, entry.seconds)
    else:
        waveform = decode(content, expected_seconds=entry.seconds)
    return AudioSample(entry.key, waveform, _parse_text(ref, ranges, parts), entry.language, ref.instruction, ref.dataset)


def _member(
    ref: SampleRef, ranges: Sequence[tuple[int, int]], parts: Sequence[bytes | Exception], offset: int, size: int
) -> bytes:
    """A sample's member, of what was read of its shard. Raises why it can't be had."""
    entry = ref.entry
    for (begin, end), part in zip(ranges, parts, strict=True):
        if begin <= offset - HEADER_BYTES and offset + size <= end:
            if isinstance(part, EOFError):
                raise BadSampleError("shard", str(part))
            if isinstance(part, Exception):
                raise part
            place = offset - begin
            try:
                check_header(part[place - HEADER_BYTES : place], entry.listing.member if entry.listing else entry.key, size)
            except ValueError as error:
                raise BadSampleError("shard", f"{ref.where} isn't as it was indexed at byte {offset}: {error}") from error
            return part[place : place + size]
    raise BadSampleError("shard", f"the index of {ref.where} has audio and text lie in each other at byte {offset}")


def _parse_text(ref: SampleRef, ranges: Sequence[tuple[int, int]], parts: Sequence[bytes | Exception]) -> str:
    """A sample's transcript as it is learned, of what was read of its shard or of its list. Raises why it can't be had."""
    entry = ref.entry
    if entry.listing is not None:
        text = entry.listing.transcript
    else:
        content = _member(ref, ranges, parts, entry.text_offset, entry.text_bytes)
        try:
            text = parse_transcript(content, is_json=entry.text_is_json)
        except (ValueError, TypeError) as error:
            raise BadSampleError("text", str(error)) from error
    text = normalise_text(text, entry.language, ref.normalization)
    if not text:
        raise BadSampleError("empty text", entry.key)
    return text
