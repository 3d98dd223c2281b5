"""Shards as one resumable stream of batches for a rank."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Generator, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kappaspeech.artefacts import digest_json
from kappaspeech.config.data_config import DataConfig
from kappaspeech.config.training_config import BatchConfig
from kappaspeech.errors import DataError
from kappaspeech.speech.augment import Augmentation
from kappaspeech.speech.batches import CacheTarget, Features, SpeechBatch, collate, empty_batch, label_ids
from kappaspeech.speech.corpus import Corpus, SpeechDataset, make_read_options
from kappaspeech.speech.feature_cache import FeatureCacheOptions
from kappaspeech.speech.hot_words import HotWords
from kappaspeech.speech.loader_pool import LoaderPool, Ticket
from kappaspeech.speech.loading import BadSample, LoadedSample, LoadOptions, OverLong
from kappaspeech.speech.prefetcher import Prefetcher
from kappaspeech.speech.prompt import hot_word_ids
from kappaspeech.speech.sample_reader import SampleRef, sample_errors
from kappaspeech.speech.samples import BadSampleError
from kappaspeech.speech.schedule import BatchBudget, ClipTokens, MicroBatchPlan, Schedule, deal_evenly
from kappaspeech.speech.source import ReadOptions


@dataclass(frozen=True)
class StreamOptions:
    """Options for reading samples, changing them and sharing them out; only `over_long`, `augmentation` and `hot_words`
    change what is trained on. `packs`: the LLM sees a micro-batch's clips without padding."""

    read: ReadOptions = field(default_factory=ReadOptions)
    over_long: OverLong = "mask"
    augmentation: Augmentation = field(default_factory=Augmentation)
    num_workers: int = 0
    prefetch_steps: int = 2
    feature_cache: FeatureCacheOptions | None = None
    even_shares: bool = False
    packs: bool = False
    hot_words: HotWords | None = None


@dataclass(frozen=True)
class StepData:
    """A rank's share of one step: ⌈G/W⌉ micro-batches, zero-weight ones included, and what they cost.

    `padding` is the share of padding among the micro-batches' frames, which the encoder sees, and `llm_padding` among audio
    positions and labels, which the LLM sees. `seconds_by_language` is audio that was neither masked nor cut off, and
    `seconds_by_dataset` the same by the names of the data sets. `hint` makes resuming at this step cheap.
    """

    global_step: int
    batches: tuple[SpeechBatch, ...]
    bad_samples: tuple[BadSample, ...]
    seconds_by_language: dict[str, float]
    wait_seconds: float
    padding: float
    llm_padding: float
    hint: tuple[int, int]
    seconds_by_dataset: dict[str, float] = field(default_factory=dict)

    @property
    def audio_seconds(self) -> float:
        return sum(self.seconds_by_language.values())

    @property
    def keys(self) -> list[str]:
        return [key for batch in self.batches for key in batch.keys]


def make_stream_options(config: DataConfig) -> StreamOptions:
    """Make the options by which a configuration streams its training data."""
    augmentation = config.augmentation.model_dump()
    return StreamOptions(
        read=make_read_options(config.read),
        over_long=config.over_long,
        augmentation=Augmentation(**{**augmentation, "speed_factors": tuple(augmentation["speed_factors"])}),
        num_workers=config.num_workers,
        prefetch_steps=config.prefetch_steps,
    )


def make_budget(batch: BatchConfig, *, prompt_tokens: int, seconds_per_position: float) -> BatchBudget:
    """Make the budget of a configuration's micro-batches, for an LLM that hears a position every so many seconds."""
    clip_tokens = ClipTokens.of(prompt_tokens=prompt_tokens, seconds_per_position=seconds_per_position)
    return BatchBudget(batch.max_samples, batch.max_seconds, batch.micro_batches_per_step, batch.max_tokens, clip_tokens)


class SpeechStream:
    """Every step's batches for one rank, prepared ahead.

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
        options: StreamOptions | None = None,
        frames_per_position: int = 8,
    ) -> None:
        """Open the data, the `corpora`. A sample longer than `max_seconds` is masked and counted, or cut. Raises `DataError`."""
        self._options = options or StreamOptions()
        named = self._options.feature_cache is not None
        self.corpora = [Corpus(dataset, self._options.read, named=named) for dataset in datasets]
        self._tokenizer = tokenizer
        self._num_mels = num_mels
        self._budget = budget
        self._seed = seed
        self._rank = rank
        self._world_size = world_size
        self._frames_per_position = frames_per_position
        augmentation = self._options.augmentation
        self._load_options = LoadOptions(
            num_mels, max_seconds, self._options.over_long, augmentation, self._options.feature_cache
        )
        lengths = [corpus.lengths(longest_factor=augmentation.longest_factor) for corpus in self.corpora]
        self._schedule = Schedule(lengths, budget, seed=seed)
        self.num_samples = sum(corpus.num_samples for corpus in self.corpora)
        instructions = [dataset.instruction for dataset in datasets]
        self.fingerprint = digest_json(
            {
                "samples": [corpus.table.fingerprint for corpus in self.corpora],
                "weights": [dataset.weight for dataset in datasets],
                "languages": [dataset.language for dataset in datasets],
                "text": [dataset.text_normalization for dataset in datasets],
                "budget": budget.to_json(),
                "load": [max_seconds, self._options.over_long, asdict(augmentation)],
                "seed": seed,
                # runs of versions that knew none keep their fingerprints
                **({"instructions": instructions} if any(text is not None for text in instructions) else {}),
                **({"hot_words": self._options.hot_words.fingerprint} if self._options.hot_words else {}),
            }
        )

    def clip_seconds(self) -> list[NDArray[np.float32]]:
        """The length of every clip, by data set."""
        return [corpus.lengths().seconds for corpus in self.corpora]

    def cache_groups(self) -> set[str]:
        """The groups of the feature cache that the samples belong to."""
        return set().union(*(corpus.cache_groups() for corpus in self.corpora))

    def steps(self, first_step: int, *, hint: tuple[int, int] = (0, 0)) -> Generator[StepData, None, None]:
        """This rank's data from `first_step` on, endlessly; the caller decides when to stop."""
        pool = LoaderPool(self._load_options, self._options.read, num_workers=self._options.num_workers)
        prepared = self._prepare_all(first_step, hint, pool)
        try:
            with Prefetcher(lambda: next(prepared), depth=self._options.prefetch_steps) as ready:
                while True:
                    began = time.monotonic()
                    data = ready.take()
                    yield replace(data, wait_seconds=time.monotonic() - began)
        finally:
            pool.close()

    def _prepare_all(self, first_step: int, hint: tuple[int, int], pool: LoaderPool) -> Generator[StepData, None, None]:
        """Steps in order, the work of some ahead already begun."""
        begun: deque[tuple[int, tuple[int, int], list[Ticket]]] = deque()
        num_ahead = self._options.prefetch_steps
        for step, (step_hint, plan) in enumerate(self._schedule.steps(first_step, hint=hint), start=first_step):
            share = self._deal(plan)[self._rank :: self._world_size]
            try:
                tickets = [pool.submit(self._refs(step, micro_batch)) for micro_batch in share]
            except DataError:
                # the steps before may be all that is needed
                while begun:
                    yield self._finish(*begun.popleft(), pool)
                raise
            begun.append((step, step_hint, tickets))
            if len(begun) > num_ahead:
                yield self._finish(*begun.popleft(), pool)
                # one more at a time: the first step isn't kept waiting while all of their shards are looked at
                num_ahead += int(pool.has_room)

    def _deal(self, plan: list[MicroBatchPlan]) -> list[MicroBatchPlan]:
        """A step's micro-batches, in the ranks' order."""
        if not self._options.even_shares or len(plan) % self._world_size == 0:
            return plan
        seconds = [self._schedule.seconds(micro_batch) for micro_batch in plan]
        return deal_evenly(plan, seconds, self._budget, world_size=self._world_size)

    def _refs(self, step: int, micro_batch: MicroBatchPlan) -> list[SampleRef]:
        return [self.corpora[d].ref(i, self._seed, step, d, i) for d, i in micro_batch.tolist()]

    def _finish(self, step: int, hint: tuple[int, int], tickets: Sequence[Ticket], pool: LoaderPool) -> StepData:
        bad: list[BadSample] = []
        seconds: dict[str, float] = {}
        by_dataset: dict[str, float] = {}
        batches = []
        positions = padded_positions = 0
        for ticket in tickets:
            features = [self._to_features(ref, item, bad) for ref, item in zip(ticket.refs, pool.take(ticket), strict=True)]
            batches.append(collate(features, num_mels=self._num_mels, keys=[ref.entry.key for ref in ticket.refs]))
            for ref, item in zip(ticket.refs, features, strict=True):
                if item is not None:
                    heard = min(ref.entry.seconds, self._load_options.max_seconds)
                    seconds[item.language] = seconds.get(item.language, 0.0) + heard
                    by_dataset[ref.dataset] = by_dataset.get(ref.dataset, 0.0) + heard
            lengths = [self._num_positions(item) for item in features if item is not None]
            positions += sum(lengths)
            padded_positions += sum(lengths) if self._options.packs else max(lengths, default=0) * len(features)
        wanted = -(-self._budget.micro_batches_per_step // self._world_size)
        batches += [empty_batch(self._num_mels)] * (wanted - len(batches))
        frames = sum(int(batch.num_frames.sum()) for batch in batches)
        padded = sum(batch.audio_input.shape[0] * batch.audio_input.shape[2] for batch in batches)
        return StepData(
            global_step=step,
            batches=tuple(batches),
            bad_samples=tuple(bad),
            seconds_by_language=seconds,
            wait_seconds=0.0,
            padding=1 - frames / padded,
            llm_padding=1 - positions / padded_positions if padded_positions else 0.0,
            hint=hint,
            seconds_by_dataset=by_dataset,
        )

    def _num_positions(self, features: Features) -> int:
        return -(-features.num_frames // self._frames_per_position) + len(features.label_ids)

    def _to_features(self, ref: SampleRef, item: LoadedSample | BadSample, bad: list[BadSample]) -> Features | None:
        if isinstance(item, BadSample):
            bad.append(item)
            return None
        try:
            with sample_errors():
                ids = label_ids(self._tokenizer, item.transcript, seconds=ref.entry.seconds)
        except BadSampleError as error:
            bad.append(BadSample.of(ref, error))
            return None
        wanted = item.cached is None and ref.cache_name is not None
        target = CacheTarget(ref.cache_name or "", item.transcript, ref.shard_stamp) if wanted else None
        hot = self._hot_ids(ref, item.transcript)
        return Features(ref.entry.key, ref.entry.language, item.audio_input, ids, item.cached, target, ref.instruction, hot)

    def _hot_ids(self, ref: SampleRef, transcript: str) -> tuple[int, ...]:
        hot = self._options.hot_words
        if hot is None:
            return ()
        words = hot.choose(transcript, ref.entry.language, ref.counter)
        return hot_word_ids(self._tokenizer, words, max_tokens=hot.options.max_tokens)
