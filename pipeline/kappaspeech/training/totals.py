"""Totals of a run over all ranks: time, hours by language and data set, samples that can't be used; and the record of a step."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch

from kappaspeech.artefacts import digest_lines
from kappaspeech.errors import DataError
from kappaspeech.runs.records import Objective, StepRecord
from kappaspeech.speech.loading import BadSample
from kappaspeech.speech.stream import StepData
from kappaspeech.training.phases import Phase
from kappaspeech.training.throughput import StepWork
from kappaspeech.zero3.engine import StepResult

_NUM_NAMED = 5
# A share of bad samples is judged against at least this many samples, or all if there are fewer: few say nothing.
_JUDGED_SAMPLES = 1_000


@dataclass(frozen=True)
class RankShare:
    """One rank's part of a step, as the others receive it. `data` is without its batches, whose keys are in `keys`."""

    loss_sum_nats: float
    data: StepData
    keys: list[str]
    work: StepWork
    replay_sum_nats: float = 0.0
    anchor_sum_nats: float = 0.0

    @classmethod
    def of(cls, data: StepData, result: StepResult, *, work: StepWork) -> RankShare:
        """The share of the rank that has `data`."""
        sums = (result.replay_sum_nats, result.anchor_sum_nats)
        return cls(result.loss_sum_nats, replace(data, batches=()), data.keys, work, *sums)


class Totals:
    """Totals step by step; all ranks hold the same except for the times: rank 0's are the ones that count."""

    def __init__(self, *, num_samples: int, max_bad_fraction: float) -> None:
        self._num_samples, self._max_bad_fraction = num_samples, max_bad_fraction
        self.train_seconds = 0.0
        self._seconds_before = 0.0
        self._num_seen = 0
        self._hours: dict[str, float] = {}
        # None after a checkpoint of a version that didn't count them
        self._dataset_hours: dict[str, float] | None = {}
        self._bad: dict[str, BadSample] = {}

    def add(self, shares: Sequence[RankShare], *, seconds: float) -> None:
        """Count a step that took `seconds`."""
        self._seconds_before = self.train_seconds
        self.train_seconds += seconds
        for share in shares:
            self._num_seen += len(share.keys)
            self._bad.update((item.key, item) for item in share.data.bad_samples)
            for language, audio_seconds in share.data.seconds_by_language.items():
                self._hours[language] = self._hours.get(language, 0.0) + audio_seconds / 3600
            if self._dataset_hours is not None:
                for name, audio_seconds in share.data.seconds_by_dataset.items():
                    self._dataset_hours[name] = self._dataset_hours.get(name, 0.0) + audio_seconds / 3600

    def has_passed(self, minutes: float) -> bool:
        """Return whether the last step crossed a multiple of `minutes` of training."""
        now, before = (seconds // (60 * minutes) for seconds in (self.train_seconds, self._seconds_before))
        return now > before

    def check_bad_samples(self) -> None:
        """Raise `DataError`, alike on every rank, once too many different samples have turned out to be unusable."""
        seen = max(min(self._num_seen, self._num_samples), min(self._num_samples, _JUDGED_SAMPLES))
        if len(self._bad) <= self._max_bad_fraction * seen:
            return
        causes = ", ".join(f"{count} {cause}" for cause, count in Counter(b.cause for b in self._bad.values()).most_common())
        shards = Counter(b.shard for b in self._bad.values()).most_common(_NUM_NAMED)
        named = "; ".join(f"{item.key} ({item.detail})" for item in list(self._bad.values())[:_NUM_NAMED])
        raise DataError(
            f"{len(self._bad)} of {seen} training samples can't be used ({causes}), more than data.max_bad_fraction "
            f"{self._max_bad_fraction:g} allows. Worst shards: {', '.join(f'{path} ({n})' for path, n in shards)}. "
            f"First samples: {named}. Repair or repack them, or raise data.max_bad_fraction."
        )

    def record(
        self,
        shares: Sequence[RankShare],
        *,
        num_target_tokens: int,
        num_replayed_tokens: int = 0,
        is_anchored: bool = False,
        learning_rates: dict[str, float],
        grad_norm: float,
        objective: Objective,
        phase_seconds: Mapping[Phase, float],
        peak_flops_per_second: float,
    ) -> StepRecord:
        """The record of the step that was added last. `phase_seconds` are this rank's, and add up to the step's."""
        seconds = sum(phase_seconds.values())
        loss_sum = sum(share.loss_sum_nats for share in shares)
        audio_seconds = sum(share.data.audio_seconds for share in shares)
        return StepRecord(
            step=shares[0].data.global_step,
            objective=objective,
            loss_nats=loss_sum / max(num_target_tokens, 1),
            loss_sum_nats=loss_sum,
            num_target_tokens=num_target_tokens,
            learning_rates=learning_rates,
            grad_norm=grad_norm,
            seconds=seconds,
            audio_seconds=audio_seconds,
            audio_seconds_per_second=audio_seconds / seconds,
            tokens_per_second=sum(share.work.num_llm_tokens for share in shares) / seconds,
            mfu=sum(share.work.flops for share in shares) / seconds / peak_flops_per_second,
            phase_seconds={str(phase): spent for phase, spent in phase_seconds.items()},
            wait_seconds=max(share.data.wait_seconds for share in shares),
            padding=sum(share.data.padding for share in shares) / len(shares),
            llm_padding=sum(share.data.llm_padding for share in shares) / len(shares),
            hours_seen=dict(sorted(self._hours.items())),
            # a set that is alone has no name
            hours_by_dataset={name: hours for name, hours in sorted((self._dataset_hours or {}).items()) if name},
            bad_samples=dict(Counter(item.cause for share in shares for item in share.data.bad_samples)),
            peak_memory_bytes=peak_memory_bytes(),
            keys_digest=digest_lines(sorted(key for share in shares for key in share.keys)),
            num_replayed_tokens=num_replayed_tokens,
            replay_nats=_mean([share.replay_sum_nats for share in shares], num_replayed_tokens),
            anchor_nats=_mean([share.anchor_sum_nats for share in shares], num_replayed_tokens) if is_anchored else None,
        )

    def to_json(self) -> dict[str, Any]:
        """The state that `restore` reads."""
        return {
            "train_seconds": self.train_seconds,
            "num_seen": self._num_seen,
            "hours_seen": self._hours,
            "hours_by_dataset": self._dataset_hours,
            "bad_samples": [asdict(item) for item in self._bad.values()],
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from the state of `to_json`."""
        self.train_seconds = self._seconds_before = state["train_seconds"]
        self._num_seen, self._hours = state["num_seen"], state["hours_seen"]
        self._dataset_hours = state.get("hours_by_dataset")
        self._bad = {item["key"]: BadSample(**item) for item in state["bad_samples"]}


def _mean(sums: Sequence[float], count: int) -> float | None:
    return sum(sums) / count if count else None


def peak_memory_bytes() -> int:
    """The most memory this process has held: of the GPU if it uses one, else of the host."""
    if torch.cuda.is_available():
        return int(torch.cuda.max_memory_allocated())
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
