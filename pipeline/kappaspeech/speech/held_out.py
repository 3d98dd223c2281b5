"""Speech that is tested on: whole data sets, or a fixed part of them, in batches that don't depend on the ranks."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace

from kappaspeech.artefacts import digest_lines
from kappaspeech.errors import DataError
from kappaspeech.speech.corpus import Corpus, SpeechDataset
from kappaspeech.speech.listings import encode_listed
from kappaspeech.speech.patterns import shard_name
from kappaspeech.speech.read_ahead import ReadAhead
from kappaspeech.speech.sample_reader import SampleReader, SampleRef
from kappaspeech.speech.samples import AudioSample, BadSampleError
from kappaspeech.speech.source import ReadOptions


def read_test_batches(
    datasets: Sequence[SpeechDataset], *, batch_size: int, max_samples: int | None = None, read: ReadOptions | None = None
) -> list[list[AudioSample]]:
    """Whole data sets in batches; `max_samples` takes `choose_subset`. Raises `DataError`, as `read_share` does."""
    return read_share(list_test_samples(datasets, max_samples=max_samples, read=read), batch_size=batch_size, read=read)


def read_share(
    refs: Sequence[SampleRef], *, batch_size: int, rank: int = 0, world_size: int = 1, read: ReadOptions | None = None
) -> list[list[AudioSample]]:
    """The samples in batches of like length, longest first; of all batches, those that `rank` of `world_size` takes.

    What a batch holds doesn't depend on the ranks, so that rounding, and with it every transcript, doesn't either. Raises
    `DataError` on a sample that can't be used: a test set with holes would be another test set.
    """
    ordered = sorted(refs, key=lambda ref: (-ref.entry.seconds, ref.entry.key))
    batches = [ordered[start : start + batch_size] for start in range(0, len(ordered), batch_size)]
    ahead = ReadAhead(SampleReader(read or ReadOptions()))
    planned = [ahead.plan(batch) for batch in batches[rank::world_size]]
    try:
        return [[_usable(ref, sample) for ref, sample in zip(batch.refs, ahead.take(batch), strict=True)] for batch in planned]
    finally:
        ahead.close()


def list_test_samples(
    datasets: Sequence[SpeechDataset], *, max_samples: int | None = None, read: ReadOptions | None = None
) -> list[SampleRef]:
    """References to all samples of the data sets, or to those of their fixed part, in the order of the data sets."""
    corpora = [Corpus(dataset, read) for dataset in datasets]
    refs = [corpus.ref(index) for corpus in corpora for index in range(corpus.num_samples)]
    if max_samples is not None and max_samples < len(refs):
        refs = [refs[i] for i in choose_subset([(ref.entry.language, ref.entry.key) for ref in refs], max_samples)]
    return refs


def digest_test_samples(refs: Sequence[SampleRef]) -> str:
    """A digest of which samples there are, where, how long, and how they are tested: not of the folder that they lie in."""
    return digest_lines(
        # indices of older versions note no heads
        repr((shard_name(ref.where), replace(ref.entry, head_digest=0), ref.normalization, ref.instruction, ref.dataset))
        for ref in refs
    )


def choose_subset(samples: Sequence[tuple[str, str]], count: int) -> list[int]:
    """Indices of `count` of the (language, key) `samples`, ascending: as many of each language as it has, up to equal shares.

    Samples are drawn by the hash of their keys: the same ones for every seed, run and order of shards, and a larger part
    holds every smaller one.
    """
    by_language: dict[str, list[int]] = {}
    for index in sorted(range(len(samples)), key=lambda i: (hashlib.sha256(samples[i][1].encode()).digest(), i)):
        by_language.setdefault(samples[index][0], []).append(index)
    rounds = sorted((place, language, index) for language, drawn in by_language.items() for place, index in enumerate(drawn))
    return sorted(index for *_, index in rounds[:count])


def _usable(ref: SampleRef, sample: AudioSample | BadSampleError) -> AudioSample:
    if isinstance(sample, BadSampleError):
        raise DataError(f"{ref.where}: the test sample {ref.entry.key} can't be used ({sample}). Repack the shard.")
    return sample


def read_clips(refs: Sequence[SampleRef], *, max_bytes: int, read: ReadOptions | None = None) -> dict[tuple[str, str], bytes]:
    """Encoded audio by data set and key, as it lies in the shards, of as many of `refs` in their order as `max_bytes` allow."""
    reader = SampleReader(read or ReadOptions())
    clips: dict[tuple[str, str], bytes] = {}
    left = max_bytes
    for ref in refs:
        listing = ref.entry.listing
        # a part is smaller than the file that it is cut from
        if listing is None and ref.entry.audio_bytes > left:
            break
        content = reader.source(ref).read(ref.entry.audio_offset, ref.entry.audio_bytes)
        clip = content if listing is None else encode_listed(content, listing, ref.entry.seconds)
        left -= len(clip)
        if left < 0:
            break
        clips[ref.dataset, ref.entry.key] = clip
    return clips
