"""Shards as one resumable stream of batches for a rank."""

from __future__ import annotations

import os
import queue
import threading
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from pipeline.artefacts import digest_json
from pipeline.errors import DataError
from pipeline.speech.batches import Features, SpeechBatch, collate, empty_batch, label_ids
from pipeline.speech.samples import AudioSample, BadSampleError, decode, log_mel
from pipeline.speech.schedule import BatchBudget, DatasetLengths, MicroBatchPlan, Schedule
from pipeline.speech.shards import SampleEntry, ShardIndex, expand, fingerprint, parse_transcript, read_index


@dataclass(frozen=True)
class SpeechDataset:
    """Shards (path, glob or brace list), with their share of the mixture. `language` keeps samples of that one alone."""

    shards: str
    language: str | None = None
    weight: float = 1.0


@dataclass(frozen=True)
class BadSample:
    """A sample that was masked: `cause` in one of a few words, the shard it lies in, and what exactly was found."""

    key: str
    cause: str
    shard: str
    detail: str


@dataclass(frozen=True)
class StepData:
    """A rank's share of one step: ⌈G/W⌉ micro-batches, zero-weight ones included, and what they cost.

    `padding` is the share of the micro-batches' frames that is padding. `hint` makes resuming at this step cheap.
    """

    global_step: int
    batches: tuple[SpeechBatch, ...]
    bad_samples: tuple[BadSample, ...]
    audio_seconds: float
    wait_seconds: float
    padding: float
    hint: tuple[int, int]

    @property
    def keys(self) -> list[str]:
        return [key for batch in self.batches for key in batch.keys]


class Corpus:
    """One data set, open for reading any sample. A context manager."""

    def __init__(self, dataset: SpeechDataset) -> None:
        """Read the indices. Raises `DataError` where shards or indices are missing or don't fit each other."""
        self.shards: list[ShardIndex] = [read_index(path) for path in expand(dataset.shards)]
        self.entries: list[tuple[int, SampleEntry]] = [
            (number, sample)
            for number, shard in enumerate(self.shards)
            for sample in shard.samples
            if dataset.language in (None, sample.language)
        ]
        if not self.entries:
            raise DataError(f"{dataset.shards} holds no sample in language {dataset.language!r}.")
        self._stack = ExitStack()
        self._descriptors: dict[int, int] = {}

    def __enter__(self) -> Corpus:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._stack.close()
        self._descriptors.clear()

    def lengths(self, weight: float) -> DatasetLengths:
        """What the schedule needs of this data set."""
        return DatasetLengths(
            seconds=np.array([sample.seconds for _, sample in self.entries]),
            shard=np.array([shard for shard, _ in self.entries], dtype=np.int64),
            weight=weight,
        )

    def read(self, index: int) -> AudioSample:
        """Read and decode one sample. Raises `BadSampleError`."""
        shard, entry = self.entries[index]
        waveform = decode(self._pread(shard, entry.audio_offset, entry.audio_bytes), expected_seconds=entry.seconds)
        try:
            text = parse_transcript(self._pread(shard, entry.text_offset, entry.text_bytes), is_json=entry.text_is_json)
        except (ValueError, StopIteration, TypeError) as error:
            raise BadSampleError("text", str(error)) from error
        if not text:
            raise BadSampleError("empty text", entry.key)
        return AudioSample(entry.key, waveform, text, entry.language)

    def _pread(self, shard: int, offset: int, size: int) -> bytes:
        if shard not in self._descriptors:
            descriptor = os.open(self.shards[shard].path, os.O_RDONLY)
            self._stack.callback(os.close, descriptor)
            self._descriptors[shard] = descriptor
        content = os.pread(self._descriptors[shard], size, offset)
        if len(content) != size:
            raise BadSampleError("shard", f"{self.shards[shard].path} ends before byte {offset + size}")
        return content


class SpeechStream:
    """Every step's batches for one rank, prepared ahead in a thread.

    What a step holds depends on the data, the seed and the step alone; `rank` and `world_size` only choose this rank's share.
    """

    def __init__(
        self,
        datasets: Sequence[SpeechDataset],
        *,
        tokenizer: Any,
        num_mels: int,
        budget: BatchBudget,
        max_seconds: float,
        seed: int,
        rank: int,
        world_size: int,
        prefetch_steps: int = 2,
    ) -> None:
        """Open the data. A sample longer than `max_seconds` is masked and counted. Raises `DataError`."""
        self._corpora = [Corpus(dataset) for dataset in datasets]
        self._tokenizer = tokenizer
        self._num_mels = num_mels
        self._budget = budget
        self._max_seconds = max_seconds
        self._rank = rank
        self._world_size = world_size
        self._prefetch_steps = prefetch_steps
        lengths = [corpus.lengths(dataset.weight) for corpus, dataset in zip(self._corpora, datasets, strict=True)]
        self._schedule = Schedule(lengths, budget, seed=seed)
        self.num_samples = sum(len(corpus.entries) for corpus in self._corpora)
        self.fingerprint = digest_json(
            {
                "shards": [fingerprint(corpus.shards) for corpus in self._corpora],
                "weights": [dataset.weight for dataset in datasets],
                "languages": [dataset.language for dataset in datasets],
                "budget": [budget.max_samples, budget.max_seconds, budget.micro_batches_per_step],
                "seed": seed,
            }
        )

    def steps(self, first_step: int, *, hint: tuple[int, int] = (0, 0)) -> Generator[StepData, None, None]:
        """This rank's data from `first_step` on, endlessly; the caller decides when to stop."""
        plans = self._schedule.steps(first_step, hint=hint)
        prepare = enumerate(plans, start=first_step)
        with _Prefetcher(lambda: self._prepare(*next(prepare)), depth=self._prefetch_steps) as ready:
            while True:
                began = time.monotonic()
                data = ready.take()
                yield _with_wait(data, time.monotonic() - began)

    def _prepare(self, global_step: int, planned: tuple[tuple[int, int], list[MicroBatchPlan]]) -> StepData:
        hint, plan = planned
        share = plan[self._rank :: self._world_size]
        bad: list[BadSample] = []
        batches = [self._load(micro_batch, bad) for micro_batch in share]
        wanted = -(-self._budget.micro_batches_per_step // self._world_size)
        batches += [empty_batch(self._num_mels)] * (wanted - len(batches))
        frames = sum(int(batch.num_frames.sum()) for batch in batches)
        padded = sum(batch.log_mel.shape[0] * batch.log_mel.shape[2] for batch in batches)
        seconds = sum(self._corpora[d].entries[i][1].seconds for micro_batch in share for d, i in micro_batch.tolist())
        return StepData(global_step, tuple(batches), tuple(bad), seconds, 0.0, 1 - frames / padded, hint)

    def _load(self, micro_batch: MicroBatchPlan, bad: list[BadSample]) -> SpeechBatch:
        features: list[Features | None] = []
        keys = []
        for dataset, index in micro_batch.tolist():
            shard, entry = self._corpora[dataset].entries[index]
            keys.append(entry.key)
            try:
                if entry.seconds > self._max_seconds:
                    raise BadSampleError("too long", f"{entry.seconds:.1f} s")
                sample = self._corpora[dataset].read(index)
                mel = log_mel(sample.waveform, self._num_mels)
                features.append(Features(sample.key, sample.language, mel, label_ids(self._tokenizer, sample.transcript)))
            except BadSampleError as error:
                path = str(self._corpora[dataset].shards[shard].path)
                bad.append(BadSample(entry.key, error.cause, path, str(error)))
                features.append(None)
        return collate(features, num_mels=self._num_mels, keys=keys)


def _with_wait(data: StepData, wait_seconds: float) -> StepData:
    return replace(data, wait_seconds=wait_seconds)


class _Prefetcher:
    """Calls `make` ahead in one thread and hands out its results in order; what it raises is raised in `take`."""

    def __init__(self, make: Callable[[], StepData], *, depth: int) -> None:
        self._make = make
        self._ready: queue.Queue[StepData | BaseException] = queue.Queue(maxsize=max(depth, 1))
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="speech-prefetch", daemon=True)

    def __enter__(self) -> _Prefetcher:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        while not self._ready.empty():
            self._ready.get_nowait()
        self._thread.join(timeout=10)

    def take(self) -> StepData:
        item = self._ready.get()
        if isinstance(item, BaseException):
            raise item
        return item

    def _run(self) -> None:
        while not self._stopped.is_set():
            item: StepData | BaseException
            try:
                item = self._make()
            except BaseException as error:  # noqa: BLE001 - handed to the consumer, whatever it is
                item = error
            while not self._stopped.is_set():
                try:
                    self._ready.put(item, timeout=0.2)
                    break
                except queue.Full:
                    continue
            if isinstance(item, BaseException):
                return


def read_test_batches(
    datasets: Sequence[SpeechDataset], *, batch_size: int, max_samples: int | None = None, rank: int = 0, world_size: int = 1
) -> list[list[AudioSample]]:
    """Whole data sets in batches of like length, longest first; of all batches, those that `rank` of `world_size` takes.

    What a batch holds doesn't depend on the ranks, so that rounding, and with it every transcript, doesn't either.
    `max_samples` takes that many, evenly spread. Raises `DataError` on a sample that can't be used: a test set with holes
    would be another test set.
    """
    corpora = [Corpus(dataset) for dataset in datasets]
    places = [(corpus, index) for corpus in corpora for index in range(len(corpus.entries))]
    if max_samples is not None and max_samples < len(places):
        places = [places[i * len(places) // max_samples] for i in range(max_samples)]
    places.sort(key=lambda place: (-place[0].entries[place[1]][1].seconds, place[0].entries[place[1]][1].key))
    batches = [places[start : start + batch_size] for start in range(0, len(places), batch_size)]
    try:
        return [[_read_or_raise(corpus, index) for corpus, index in batch] for batch in batches[rank::world_size]]
    finally:
        for corpus in corpora:
            corpus.close()


def _read_or_raise(corpus: Corpus, index: int) -> AudioSample:
    shard, entry = corpus.entries[index]
    try:
        return corpus.read(index)
    except BadSampleError as error:
        path = corpus.shards[shard].path
        raise DataError(f"{path}: the test sample {entry.key} can't be used ({error}). Repack the shard.") from error
