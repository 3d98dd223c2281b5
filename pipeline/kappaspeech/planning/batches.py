"""The sizes of micro-batches: by the budget alone, or as the budget cuts the clips that there are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from kappaspeech.speech.schedule import BatchBudget, cut_by_budget

_MAX_CLIPS = 200_000


@dataclass(frozen=True)
class MicroBatchSize:
    """Clips of one length each: `num_samples` rows that are padded to `clip_seconds`.

    With `packed_seconds`, the clips' own lengths together, the LLM has no padding: they are one row of it.
    """

    num_samples: float
    clip_seconds: float
    packed_seconds: float | None = None

    @property
    def padded_seconds(self) -> float:
        return self.num_samples * self.clip_seconds

    @property
    def llm_seconds(self) -> float:
        """Seconds of audio that the LLM computes, padding included if it has any."""
        return self.padded_seconds if self.packed_seconds is None else self.packed_seconds

    def scaled(self, factor: float) -> MicroBatchSize:
        """A micro-batch of `factor` times as many clips."""
        packed = None if self.packed_seconds is None else factor * self.packed_seconds
        return MicroBatchSize(factor * self.num_samples, self.clip_seconds, packed)


@dataclass(frozen=True)
class BatchSizes:
    """The largest micro-batch, which memory must hold, and the mean one, by which time is predicted. `source` says how we know.

    `longest_seconds` is the longest clip that trains, which may be in a smaller micro-batch; None if it isn't known.
    """

    largest: MicroBatchSize
    mean: MicroBatchSize
    source: str
    longest_seconds: float | None = None


def sizes_by_budget(budget: BatchBudget) -> BatchSizes:
    """The most that the budget allows: as many clips as it takes, which together fill it."""
    seconds = budget.max_seconds
    if budget.max_tokens is not None:
        clips = budget.clip_tokens
        seconds = min(seconds, max(0.0, budget.max_tokens - clips.per_clip * budget.max_samples) / clips.per_second)
    full = MicroBatchSize(budget.max_samples, seconds / budget.max_samples)
    return BatchSizes(full, full, "the batch budget, filled")


def sizes_by_lengths(
    seconds: Sequence[NDArray[np.float32]], budget: BatchBudget, *, max_seconds: float, packs: bool = False
) -> BatchSizes:
    """The micro-batches into which the budget cuts clips of these lengths, in order of length as the schedule's buckets are.

    Clips longer than `max_seconds` don't enter. A large corpus is judged by an even part of it. `packs`: the LLM computes the
    clips' own lengths.
    """
    lengths = np.sort(np.concatenate(list(seconds)).astype(np.float64))
    lengths = lengths[lengths <= max_seconds]
    if not len(lengths):
        return sizes_by_budget(budget)
    longest = float(lengths[-1])
    lengths = lengths[:: -(-len(lengths) // _MAX_CLIPS)]
    runs = cut_by_budget(lengths, budget)
    batches = [
        MicroBatchSize(end - start, float(lengths[end - 1]), float(lengths[start:end].sum()) if packs else None)
        for start, end in runs
    ]
    largest = max(batches, key=lambda batch: batch.padded_seconds)
    num_samples = len(lengths) / len(batches)
    mean = MicroBatchSize(
        num_samples,
        sum(batch.padded_seconds for batch in batches) / len(batches) / num_samples,
        float(lengths.sum()) / len(batches) if packs else None,
    )
    return BatchSizes(largest, mean, f"the lengths of {len(lengths):,} clips", longest)
