"""Samples as a batch is made of them: read, decoded, changed as asked, or why they can't be used."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from kappaspeech.errors import DataError
from kappaspeech.redaction import redact
from kappaspeech.speech.augment import Augmentation, change_speed, generator, mask_spectrogram
from kappaspeech.speech.feature_cache import CachedClip, FeatureCache, FeatureCacheOptions
from kappaspeech.speech.listed_audio import check_speech
from kappaspeech.speech.read_ahead import PlannedBatch, ReadAhead
from kappaspeech.speech.sample_reader import SampleReader, SampleRef, sample_errors
from kappaspeech.speech.samples import SAMPLE_RATE_HZ, AudioSample, BadSampleError, encoder_input
from kappaspeech.speech.shards import SampleEntry
from kappaspeech.speech.source import ReadOptions, is_remote

OverLong = Literal["mask", "cut"]


@dataclass(frozen=True)
class LoadOptions:
    """Options for loading each sample. One longer than `max_seconds` is masked, or its audio is cut there."""

    num_mels: int
    max_seconds: float
    over_long: OverLong = "mask"
    augmentation: Augmentation = field(default_factory=Augmentation)
    feature_cache: FeatureCacheOptions | None = None


@dataclass(frozen=True)
class LoadedSample:
    """`audio_input` (M, T) float32 of a usable sample, as its encoder reads it, and its transcript; of a cached one the
    encoder's states, and T is 0. `lost_shard` is a cached one's shard if it is gone, and the transcript as it was cached."""

    audio_input: NDArray[np.float32]
    transcript: str
    cached: CachedClip | None = None
    lost_shard: str | None = None


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


class Loader:
    """Loads micro-batches in this process."""

    def __init__(self, options: LoadOptions, read: ReadOptions) -> None:
        self._options = options
        self._reader = SampleReader(read)
        self._ahead = ReadAhead(self._reader)
        self._cache = FeatureCache(options.feature_cache) if options.feature_cache else None

    def plan(self, refs: Sequence[SampleRef]) -> PlannedBatch | None:
        """Let a micro-batch be read ahead, if its samples may not be in the feature cache; it is for `load`."""
        return None if self._cache else self._ahead.plan(self._wanted(refs, [None] * len(refs)))

    def load(self, refs: Sequence[SampleRef], planned: PlannedBatch | None = None) -> list[LoadedSample | BadSample]:
        """Each sample, or why it can't be used. `planned` is what `plan` returned for them, if they were planned. Raises
        `DataError` if a shard can't be had at all."""
        loaded: list[LoadedSample | BadSample] = []
        cached = [self._from_cache(ref) for ref in refs]
        uncertain = [ref for ref, clip in zip(refs, cached, strict=True) if clip is not None and _may_be_corrected(ref)]
        texts = iter(self._reader.read_transcripts(uncertain))
        samples = iter(self._ahead.take(planned or self._ahead.plan(self._wanted(refs, cached))))
        for ref, clip in zip(refs, cached, strict=True):
            cause = self._cause(ref.entry)
            if clip is None and cause is not None:
                loaded.append(BadSample(ref.entry.key, cause, ref.where, f"{ref.entry.seconds:.1f} s"))
                continue
            try:
                if clip is not None:
                    loaded.append(self._finish_cached(clip, ref, next(texts) if _may_be_corrected(ref) else clip.transcript))
                    continue
                sample = next(samples)
                if isinstance(sample, BadSampleError):
                    raise sample
                with sample_errors():
                    loaded.append(self._finish(sample, ref))
            except BadSampleError as error:
                loaded.append(BadSample.of(ref, error))
        return loaded

    @property
    def has_room(self) -> bool:
        """Return whether it pays to plan more before the first is loaded."""
        return self._ahead.has_room

    def close(self) -> None:
        """Let go of what was read ahead."""
        self._ahead.close()

    def _wanted(self, refs: Sequence[SampleRef], cached: Sequence[CachedClip | None]) -> list[SampleRef]:
        """The samples to be read: not what is cached, nor what can't be used by what its index says."""
        return [ref for ref, clip in zip(refs, cached, strict=True) if clip is None and self._cause(ref.entry) is None]

    def _from_cache(self, ref: SampleRef) -> CachedClip | None:
        clip = self._cache.read(ref.cache_name) if self._cache and ref.cache_name else None
        # what a server has in place of an earlier version may be other audio, too
        is_other = clip is not None and is_remote(ref.where) and ref.shard_stamp not in ("", clip.shard_stamp)
        return None if is_other else clip

    def _cause(self, entry: SampleEntry) -> str | None:
        """The reason why a sample can't be used, as far as its index says."""
        if entry.seconds <= 0:
            return "no length"
        return "too long" if self._options.over_long == "mask" and entry.seconds > self._options.max_seconds else None

    def _finish_cached(self, clip: CachedClip, ref: SampleRef, transcript: str | Exception) -> LoadedSample:
        """A cached sample with its transcript, or with the one that was cached if its shard lay here and is gone."""
        lost_shard = None
        if isinstance(transcript, Exception):
            if not isinstance(transcript, DataError) or is_remote(ref.where) or os.path.exists(ref.where):
                raise transcript
            transcript, lost_shard = clip.transcript, ref.where
        return LoadedSample(np.empty((self._options.num_mels, 0), np.float32), transcript, clip, lost_shard)

    def _finish(self, sample: AudioSample, ref: SampleRef) -> LoadedSample:
        options = self._options
        random = generator(*ref.counter)
        waveform, most = sample.waveform, int(options.max_seconds * SAMPLE_RATE_HZ)
        if ref.entry.listing is not None:
            check_speech(waveform)
        # a clip that fits isn't made so long that its last words would be cut off
        slowest = len(waveform) / most if len(waveform) <= most else 0.0
        if factors := [factor for factor in options.augmentation.speed_factors if factor >= slowest]:
            waveform = change_speed(waveform, factors, random)
        features = encoder_input(waveform[:most], options.num_mels)
        return LoadedSample(mask_spectrogram(features, options.augmentation, random), sample.transcript)


def _may_be_corrected(ref: SampleRef) -> bool:
    """Return whether a sample's transcript may be another than when it was cached: in a file here, or on a server that tells no
    version."""
    return not is_remote(ref.where) or not ref.shard_stamp
