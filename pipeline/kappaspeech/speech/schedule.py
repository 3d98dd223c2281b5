"""The schedule: the samples of a step, as a pure function of seed, data and step, without the world size.

Each data set is read epoch by epoch in an order of its own; a *window* takes a fixed share of every data set, is shuffled,
bucketed by length, cut into micro-batches by a budget, and grouped into steps. Windows can be computed one by one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import NDArray

# Neighbours in a shard that stay together, so that a remote shard is read in few requests.
BLOCK_SIZE = 64
MAX_WINDOW_SIZE = 65_536
# Lengths within a factor of 1.1 share a bucket: at most a tenth of a micro-batch is padding.
_BUCKET_GROWTH = 1.1
_EPOCH_STREAM, _WINDOW_STREAM = 0, 1
# Speech has about 2.5 words a second, and a word of English or German 1.5 tokens of a large vocabulary.
LABEL_TOKENS_PER_SECOND = 4.0


@dataclass(frozen=True)
class DatasetLengths:
    """Lengths of a data set: seconds of each sample, the first sample of each shard, and its share of the mixture.

    `seconds` (N,) float32 or float64; `shard_starts` (S,) int64, ascending from 0, each below N.
    """

    seconds: NDArray[Any]
    shard_starts: NDArray[np.int64]
    weight: float


@dataclass(frozen=True)
class ClipTokens:
    """The LLM's tokens of a clip, by its length alone: what it says is known only once it is read."""

    per_clip: int
    per_second: float

    @classmethod
    def of(cls, *, prompt_tokens: int, seconds_per_position: float) -> ClipTokens:
        """Prompt, audio positions of so many seconds, text, and the text's end."""
        return cls(prompt_tokens + 1, 1 / seconds_per_position + LABEL_TOKENS_PER_SECOND)

    def count(self, seconds: NDArray[Any]) -> NDArray[np.int64]:
        """The tokens (N,) of clips of these lengths."""
        return self.per_clip + np.ceil(np.asarray(seconds, dtype=np.float64) * self.per_second).astype(np.int64)


# Whisper's states, four to a position, without a prompt
AUDIO_AND_TEXT = ClipTokens.of(prompt_tokens=0, seconds_per_position=0.08)


@dataclass(frozen=True)
class BatchBudget:
    """A micro-batch holds at most `max_samples` and at most `max_seconds` of padded audio; a step this many of them.

    With `max_tokens` it also holds at most so many of the LLM's tokens, padding left out, by `clip_tokens`.
    """

    max_samples: int
    max_seconds: float
    micro_batches_per_step: int
    max_tokens: int | None = None
    clip_tokens: ClipTokens = AUDIO_AND_TEXT

    def count_tokens(self, seconds: NDArray[Any]) -> list[int]:
        """The tokens that count against `max_tokens`: none if there is no such limit."""
        return [0] * len(seconds) if self.max_tokens is None else self.clip_tokens.count(seconds).tolist()

    def allows(self, count: int, longest: float, tokens: int) -> bool:
        """Return whether so many clips, of at most `longest` seconds and these tokens together, fit into a micro-batch."""
        if count > self.max_samples or longest * count > self.max_seconds:
            return False
        return self.max_tokens is None or tokens <= self.max_tokens

    def to_json(self) -> list[Any]:
        """The values that identify it; the same as before there were limits of tokens, if there is no limit of tokens."""
        seconds = [self.max_samples, self.max_seconds, self.micro_batches_per_step]
        if self.max_tokens is None:
            return seconds
        return [*seconds, self.max_tokens, self.clip_tokens.per_clip, self.clip_tokens.per_second]


MicroBatchPlan = NDArray[np.int64]
"""(B, 2): data set and sample of each row."""


class Schedule:
    """The infinite sequence of steps. Equal arguments give equal steps, anywhere."""

    def __init__(self, datasets: Sequence[DatasetLengths], budget: BatchBudget, *, seed: int) -> None:
        if not datasets or any(len(dataset.seconds) == 0 for dataset in datasets):
            raise ValueError("every data set needs at least one sample")
        self._datasets = datasets
        self._budget = budget
        self._seed = seed
        total = sum(Fraction(dataset.weight) for dataset in datasets)
        self._shares = [Fraction(dataset.weight) / total for dataset in datasets]
        self._window_size = min(MAX_WINDOW_SIZE, sum(len(dataset.seconds) for dataset in datasets))
        self._starts = [block_starts(dataset.shard_starts, len(dataset.seconds)) for dataset in datasets]
        self._orders: dict[tuple[int, int], tuple[NDArray[np.int64], NDArray[np.int64]]] = {}

    def steps(self, first_step: int, *, hint: tuple[int, int] = (0, 0)) -> Iterator[tuple[tuple[int, int], list[MicroBatchPlan]]]:
        """Yield (hint, micro-batches) of each step from `first_step` on. A hint (window, its first step) spares planning the
        windows before.
        """
        window, step = hint if hint[1] <= first_step else (0, 0)
        while True:
            plan = self._plan_window(window)
            for index in range(max(0, first_step - step), len(plan)):
                yield (window, step), plan[index]
            step += len(plan)
            window += 1

    def seconds(self, micro_batch: MicroBatchPlan) -> NDArray[np.float64]:
        """The lengths of a micro-batch's clips."""
        return np.array([self._datasets[dataset].seconds[sample] for dataset, sample in micro_batch.tolist()], dtype=np.float64)

    def _plan_window(self, window: int) -> list[list[MicroBatchPlan]]:
        rng = self._generator(_WINDOW_STREAM, window)
        rows = np.concatenate([self._draw(dataset, window) for dataset in range(len(self._datasets))])
        seconds = np.concatenate([self._datasets[d].seconds[rows[rows[:, 0] == d, 1]] for d in range(len(self._datasets))])
        bucket = np.floor(np.log(np.maximum(seconds, 1e-3)) / np.log(_BUCKET_GROWTH)).astype(np.int64)
        order = np.lexsort((rng.random(len(rows)), bucket))
        batches = cut_by_budget(seconds[order], self._budget)
        size = self._budget.micro_batches_per_step
        micro_batches = [rows[order[start:end]] for start, end in batches]
        steps = [micro_batches[start : start + size] for start in range(0, len(micro_batches), size)]
        return [steps[i] for i in rng.permutation(len(steps))]

    def _draw(self, dataset: int, window: int) -> NDArray[np.int64]:
        """The samples (n, 2) that `window` takes from a data set: its exact share, rounded so that windows add up."""
        share = self._shares[dataset] * self._window_size
        first, last = int(share * window), int(share * (window + 1))
        count = len(self._datasets[dataset].seconds)
        parts = []
        for epoch in range(first // count, (last - 1) // count + 1 if last > first else first // count):
            low, high = max(first - epoch * count, 0), min(last - epoch * count, count)
            parts.append(self._epoch_part(dataset, epoch, low, high))
        samples = np.concatenate(parts) if parts else np.empty(0, dtype=np.int64)
        return np.stack([np.full(len(samples), dataset, dtype=np.int64), samples], axis=1)

    def _epoch_part(self, dataset: int, epoch: int, low: int, high: int) -> NDArray[np.int64]:
        """Places `low` to `high` of an epoch, which holds each sample once: whole blocks of neighbours in random order."""
        chosen, ends = self._epoch_order(dataset, epoch)
        starts = self._starts[dataset]
        first, last = np.searchsorted(ends, [low, high - 1], side="right")
        blocks = chosen[first : last + 1]
        after = np.append(starts, len(self._datasets[dataset].seconds))[blocks + 1]
        samples = np.concatenate([np.arange(start, end) for start, end in zip(starts[blocks], after, strict=True)])
        begin = low - (int(ends[first - 1]) if first else 0)
        return samples[begin : begin + high - low]

    def _epoch_order(self, dataset: int, epoch: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """A data set's blocks in an epoch's order, and how many samples there are up to the end of each."""
        if (dataset, epoch) not in self._orders:
            starts = self._starts[dataset]
            sizes = np.diff(starts, append=len(self._datasets[dataset].seconds))
            chosen = self._generator(_EPOCH_STREAM, dataset, epoch).permutation(len(starts))
            self._orders = {key: order for key, order in self._orders.items() if key[0] != dataset or key[1] >= epoch - 1}
            self._orders[dataset, epoch] = chosen, np.cumsum(sizes[chosen])
        return self._orders[dataset, epoch]

    def _generator(self, *counter: int) -> np.random.Generator:
        return np.random.Generator(np.random.Philox(np.random.SeedSequence([self._seed & (2**64 - 1), *counter])))


def block_starts(shard_starts: NDArray[np.int64], num_samples: int) -> NDArray[np.int64]:
    """First samples of the blocks: every `BLOCK_SIZE` samples from the start of each shard."""
    ends = np.append(shard_starts[1:], num_samples)
    return np.concatenate([np.arange(start, end, BLOCK_SIZE) for start, end in zip(shard_starts, ends, strict=True)])


def cut_by_budget(seconds: NDArray[np.float64], budget: BatchBudget) -> list[tuple[int, int]]:
    """Cut a sequence into runs [start, end) that stay in the budget, each padded to its longest clip; at least one each."""
    runs, start, longest, tokens = [], 0, 0.0, 0
    for index, (length, clip_tokens) in enumerate(zip(seconds.tolist(), budget.count_tokens(seconds), strict=True)):
        longest_with, tokens_with = max(longest, length), tokens + clip_tokens
        count = index - start + 1
        if count > 1 and not budget.allows(count, longest_with, tokens_with):
            runs.append((start, index))
            start, longest_with, tokens_with = index, length, clip_tokens
        longest, tokens = longest_with, tokens_with
    if len(seconds):
        runs.append((start, len(seconds)))
    return runs


def deal_evenly(
    micro_batches: Sequence[MicroBatchPlan], seconds: Sequence[NDArray[Any]], budget: BatchBudget, *, world_size: int
) -> list[MicroBatchPlan]:
    """The clips of a step in micro-batches that go evenly among ranks, of about the same tokens each.

    `seconds` are the lengths of each micro-batch's clips. Ranks take as many turns as before; neighbours in length stay
    together. If the micro-batches go evenly already, or a new one would pass the budget, they stay as they are.
    """
    wanted = -(-len(micro_batches) // world_size) * world_size
    if wanted == len(micro_batches):
        return list(micro_batches)
    rows, lengths = np.concatenate(micro_batches), np.concatenate(seconds)
    order = np.argsort(lengths, kind="stable")
    rows, lengths = rows[order], lengths[order]
    ends = budget.clip_tokens.count(lengths).cumsum()
    # the clip in which each share of all tokens ends belongs to the nearer one
    shares = ends[-1] * np.arange(1, wanted) / wanted
    cuts = np.searchsorted((ends + np.concatenate([[0], ends[:-1]])) / 2, shares)
    dealt = [part for part in np.split(np.arange(len(rows)), cuts) if len(part)]
    tokens = budget.count_tokens(lengths)
    fits = (budget.allows(len(part), float(lengths[part[-1]]), sum(tokens[i] for i in part)) or len(part) == 1 for part in dealt)
    return [rows[part] for part in dealt] if all(fits) else list(micro_batches)
