"""Samples from where they lie to what a batch is made of: read, checked, decoded, changed as asked; in worker processes."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeoutError
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from kappaspeech.errors import DataError
from kappaspeech.parenthood import end_with_parent
from kappaspeech.redaction import redact
from kappaspeech.speech.augment import Augmentation, change_speed, generator, mask_spectrogram
from kappaspeech.speech.feature_cache import CachedClip, FeatureCache, FeatureCacheOptions
from kappaspeech.speech.normalisers import TextNormalization, normalise_text
from kappaspeech.speech.samples import SAMPLE_RATE_HZ, AudioSample, BadSampleError, decode, log_mel
from kappaspeech.speech.shards import SampleEntry, check_header, parse_transcript
from kappaspeech.speech.source import ReadOptions, Source
from kappaspeech.speech.sources import open_source, read_many
from kappaspeech.speech.tar_members import HEADER_BYTES

OverLong = Literal["mask", "cut"]
# Audio and text that lie this near to each other are read at once.
_LARGEST_GAP_BYTES = 1 << 16
_MAX_OPEN_SOURCES = 512
_MAX_RESTARTS = 3
_POLL_SECONDS = 1.0


@dataclass(frozen=True)
class SampleRef:
    """A sample to load: its shard, where in it, how its text is written, the counter of its random numbers, its name in the
    feature cache, and a digest of the shard as it was indexed."""

    where: str
    entry: SampleEntry
    normalization: TextNormalization = "none"
    counter: tuple[int, ...] = ()
    cache_name: str | None = None
    version: str = ""


@dataclass(frozen=True)
class LoadOptions:
    """What becomes of every sample. One longer than `max_seconds` is masked, or its audio is cut there."""

    num_mels: int
    max_seconds: float
    over_long: OverLong = "mask"
    augmentation: Augmentation = field(default_factory=Augmentation)
    feature_cache: FeatureCacheOptions | None = None


@dataclass(frozen=True)
class LoadedSample:
    """`log_mel` (M, T) float32 of a usable sample, and its transcript; of a cached one the encoder's states, and T is 0."""

    log_mel: NDArray[np.float32]
    transcript: str
    cached: CachedClip | None = None


@dataclass(frozen=True)
class BadSample:
    """A sample that was masked: `cause` in one of a few words, the shard it lies in, and what exactly was found."""

    key: str
    cause: str
    shard: str
    detail: str

    @classmethod
    def of(cls, ref: SampleRef, error: BadSampleError) -> BadSample:
        """The record of what a sample raised."""
        return cls(ref.entry.key, error.cause, ref.where, str(error))

    def __post_init__(self) -> None:
        # these are for people: they go into logs and messages
        object.__setattr__(self, "shard", redact(self.shard))
        object.__setattr__(self, "detail", redact(self.detail))


class SampleReader:
    """Reads samples of any shards; keeps the last few hundred open."""

    def __init__(self, options: ReadOptions) -> None:
        self._open = lru_cache(maxsize=_MAX_OPEN_SOURCES)(lambda where, version: open_source(where, options, version=version))

    def source(self, ref: SampleRef) -> Source:
        """The open shard of a sample."""
        return self._open(ref.where, ref.version)

    def fetch(self, refs: Sequence[SampleRef]) -> list[list[bytes | Exception]]:
        """What `_ranges` names of each sample, as it lies in its shard, or why it can't be had."""
        places = [_ranges(ref.entry) for ref in refs]
        requests = [
            (self.source(ref), begin, end - begin) for ref, ranges in zip(refs, places, strict=True) for begin, end in ranges
        ]
        contents = iter(read_many(requests))
        return [[next(contents) for _ in ranges] for ranges in places]

    def read(self, refs: Sequence[SampleRef]) -> list[AudioSample | BadSampleError]:
        """Each sample, decoded, or what is wrong with it. Raises `DataError` where a shard can't be had at all."""
        samples: list[AudioSample | BadSampleError] = []
        for ref, parts in zip(refs, self.fetch(refs), strict=True):
            try:
                with sample_errors():
                    samples.append(_parse(ref, _ranges(ref.entry), parts))
            except BadSampleError as error:
                samples.append(error)
        return samples


@contextlib.contextmanager
def sample_errors() -> Iterator[None]:
    """Whatever one sample raises within is a `BadSampleError`, so that it is counted and costs no more than itself; but for a
    `DataError`, which is of its whole shard."""
    try:
        yield
    except (BadSampleError, DataError):
        raise
    except Exception as error:
        raise BadSampleError("unusable", f"{type(error).__name__}: {error}") from error


def _ranges(entry: SampleEntry) -> list[tuple[int, int]]:
    """What must be read of a shard for a sample, tar headers included: one range where its members are neighbours, else two."""
    audio = entry.audio_offset - HEADER_BYTES, entry.audio_offset + entry.audio_bytes
    text = entry.text_offset - HEADER_BYTES, entry.text_offset + entry.text_bytes
    first, second = sorted((audio, text))
    is_near = second[0] - first[1] <= _LARGEST_GAP_BYTES
    return [(first[0], max(first[1], second[1]))] if is_near else [audio, text]


def _parse(ref: SampleRef, ranges: Sequence[tuple[int, int]], parts: Sequence[bytes | Exception]) -> AudioSample:
    entry = ref.entry

    def member(offset: int, size: int) -> bytes:
        for (begin, end), part in zip(ranges, parts, strict=True):
            if begin <= offset - HEADER_BYTES and offset + size <= end:
                if isinstance(part, EOFError):
                    raise BadSampleError("shard", str(part))
                if isinstance(part, Exception):
                    raise part
                place = offset - begin
                try:
                    check_header(part[place - HEADER_BYTES : place], entry.key, size)
                except ValueError as error:
                    raise BadSampleError("shard", f"{ref.where} isn't as it was indexed at byte {offset}: {error}") from error
                return part[place : place + size]
        raise BadSampleError("shard", f"the index of {ref.where} has audio and text lie in each other at byte {offset}")

    waveform = decode(member(entry.audio_offset, entry.audio_bytes), expected_seconds=entry.seconds)
    try:
        text = parse_transcript(member(entry.text_offset, entry.text_bytes), is_json=entry.text_is_json)
    except (ValueError, TypeError) as error:
        raise BadSampleError("text", str(error)) from error
    text = normalise_text(text, entry.language, ref.normalization)
    if not text:
        raise BadSampleError("empty text", entry.key)
    return AudioSample(entry.key, waveform, text, entry.language)


class Loader:
    """Loads micro-batches in this process."""

    def __init__(self, options: LoadOptions, read: ReadOptions) -> None:
        self._options = options
        self._reader = SampleReader(read)
        self._cache = FeatureCache(options.feature_cache) if options.feature_cache else None

    def load(self, refs: Sequence[SampleRef]) -> list[LoadedSample | BadSample]:
        """Each sample, or why it can't be used. Raises `DataError` where a shard can't be had at all."""
        loaded: list[LoadedSample | BadSample] = []
        # what can't be used by what its index says isn't fetched
        cached = [self._from_cache(ref) for ref in refs]
        wanted = [ref for ref, clip in zip(refs, cached, strict=True) if clip is None and self._cause(ref.entry) is None]
        samples = iter(self._reader.read(wanted))
        for ref, clip in zip(refs, cached, strict=True):
            if clip is not None:
                loaded.append(LoadedSample(np.empty((self._options.num_mels, 0), np.float32), clip.transcript, clip))
                continue
            cause = self._cause(ref.entry)
            if cause is not None:
                loaded.append(BadSample(ref.entry.key, cause, ref.where, f"{ref.entry.seconds:.1f} s"))
                continue
            sample = next(samples)
            try:
                if isinstance(sample, BadSampleError):
                    raise sample
                with sample_errors():
                    loaded.append(self._finish(sample, ref))
            except BadSampleError as error:
                loaded.append(BadSample.of(ref, error))
        return loaded

    def _from_cache(self, ref: SampleRef) -> CachedClip | None:
        return self._cache.read(ref.cache_name) if self._cache and ref.cache_name else None

    def _cause(self, entry: SampleEntry) -> str | None:
        """Why a sample can't be used, as far as its index says."""
        if entry.seconds <= 0:
            return "no length"
        return "too long" if self._options.over_long == "mask" and entry.seconds > self._options.max_seconds else None

    def _finish(self, sample: AudioSample, ref: SampleRef) -> LoadedSample:
        options = self._options
        random = generator(*ref.counter)
        waveform = sample.waveform
        if options.augmentation.speed_factors:
            waveform = change_speed(waveform, options.augmentation.speed_factors, random)
        features = log_mel(waveform[: int(options.max_seconds * SAMPLE_RATE_HZ)], options.num_mels)
        return LoadedSample(mask_spectrogram(features, options.augmentation, random), sample.transcript)


_worker_loader: Loader | None = None


def _start_worker(parent: int, options: LoadOptions, read: ReadOptions) -> None:
    # before torch is loaded, which takes seconds
    end_with_parent(parent)
    import torch

    # a pool's initializer has nowhere else to leave it
    global _worker_loader
    # threads of several processes on the same cores cost more than they bring
    torch.set_num_threads(1)
    _worker_loader = Loader(options, read)


def _load_in_worker(refs: Sequence[SampleRef]) -> list[LoadedSample | BadSample]:
    assert _worker_loader is not None
    return _worker_loader.load(refs)


class LoaderPool:
    """`Loader` in `num_workers` processes, or in the calling thread for 0. A worker that dies is replaced, and its work done
    again, a few times; then its end is an error."""

    def __init__(self, options: LoadOptions, read: ReadOptions, *, num_workers: int) -> None:
        self._options, self._read, self._num_workers = options, read, num_workers
        self._own = Loader(options, read) if num_workers == 0 else None
        self._pool: ProcessPoolExecutor | None = None
        self._generation = 0

    def submit(self, refs: Sequence[SampleRef]) -> Ticket:
        """Begin to load; the result is had from `take`."""
        if self._own is not None:
            return Ticket(refs, None, 0)
        while True:
            generation = self._generation
            try:
                return Ticket(refs, self._start().submit(_load_in_worker, refs), generation)
            except BrokenProcessPool as error:
                self._replace(generation, error)

    def take(self, ticket: Ticket) -> list[LoadedSample | BadSample]:
        """What was begun, once it is there. Raises `DataError`."""
        if self._own is not None:
            return self._own.load(ticket.refs)
        while True:
            assert ticket.future is not None
            try:
                return self._wait(ticket.future)
            except BrokenProcessPool as error:
                self._replace(ticket.generation, error)
                ticket = self.submit(ticket.refs)

    def _wait(self, future: Future[list[LoadedSample | BadSample]]) -> list[LoadedSample | BadSample]:
        """Its result. Raises `BrokenProcessPool` also where a worker was killed while it handed a result over: the executor
        then waits for the rest of it for ever, as its other workers wait for the lock that the dead one held."""
        while True:
            try:
                return future.result(timeout=_POLL_SECONDS)
            except FutureTimeoutError:
                if future.done() or self._pool is None:
                    continue
                workers = list((self._pool._processes or {}).values())
                if all(worker.exitcode is None for worker in workers):
                    continue
            # the executor has had its chance to notice
            with contextlib.suppress(FutureTimeoutError):
                return future.result(timeout=_POLL_SECONDS)
            for worker in workers:
                worker.kill()
            # the last open end: now the executor reads an end of file
            results: Any = self._pool._result_queue
            results._writer.close()
            return future.result()

    def _start(self) -> ProcessPoolExecutor:
        if self._pool is None:
            # neither torch nor fsspec survives a fork of a process that has used it
            context = multiprocessing.get_context("spawn")
            arguments = (os.getpid(), self._options, self._read)
            self._pool = ProcessPoolExecutor(self._num_workers, mp_context=context, initializer=_start_worker, initargs=arguments)
        return self._pool

    def _replace(self, generation: int, error: BrokenProcessPool) -> None:
        """A pool that lost a worker takes no more work, and all that it had fails: the first to notice replaces it."""
        if generation != self._generation:
            return
        self._generation += 1
        if self._generation > _MAX_RESTARTS:
            raise DataError(
                f"Workers that load samples have died {self._generation} times, most likely for lack of memory. Give fewer "
                "data.num_workers, or smaller micro-batches."
            ) from error
        print(f"warning: a worker that loads samples died; its samples are loaded again ({self._generation})", file=sys.stderr)
        self.close()

    def close(self) -> None:
        """End the workers."""
        if self._pool is not None:
            self._pool.shutdown(wait=False, cancel_futures=True)
            self._pool = None


@dataclass(frozen=True)
class Ticket:
    """Work that was begun, by which of the pools that followed each other."""

    refs: Sequence[SampleRef]
    future: Future[list[LoadedSample | BadSample]] | None
    generation: int
