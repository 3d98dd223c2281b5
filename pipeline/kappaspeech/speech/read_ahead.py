"""Micro-batches' bytes, asked for before their turn: no answer of a server waits for another, or for what is decoded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from kappaspeech.speech.ranges import FarRange
from kappaspeech.speech.sample_reader import BegunSample, SampleReader, SampleRef
from kappaspeech.speech.samples import AudioSample, BadSampleError
from kappaspeech.speech.source import is_remote

_MOST_BYTES = 64 << 20
# Micro-batches that are planned, of whatever size: what an index says of sizes may be anything.
_MOST_PLANNED = 1024


@dataclass
class PlannedBatch:
    """A micro-batch that will be read; `begun` once its bytes were asked for."""

    refs: Sequence[SampleRef]
    num_bytes: int
    begun: list[BegunSample] | None = None


class ReadAhead:
    """Reads micro-batches that are planned before they are taken.

    Remote ones are asked for together, in their order, as many as have at most `most_bytes`. What lies on this machine is read
    when it is taken.
    """

    def __init__(self, reader: SampleReader, *, most_bytes: int = _MOST_BYTES) -> None:
        self._reader = reader
        self._most_bytes = most_bytes
        self._planned: dict[int, PlannedBatch] = {}
        self._num_planned = self._num_bytes_planned = self._num_bytes_begun = self._num_bytes_enough = 0

    @property
    def has_room(self) -> bool:
        """Return whether it pays to plan more: neighbours in a remote shard come together, and more may be asked for."""
        return bool(self._planned) and self._num_bytes_planned < self._most_bytes and self._num_planned < _MOST_PLANNED

    def plan(self, refs: Sequence[SampleRef]) -> PlannedBatch:
        """Plan to read a micro-batch; it is had from `take`."""
        batch = PlannedBatch(refs, sum(ref.entry.audio_bytes + ref.entry.text_bytes for ref in refs))
        self._num_planned, self._num_bytes_planned = self._num_planned + 1, self._num_bytes_planned + batch.num_bytes
        if any(is_remote(ref.where) for ref in refs):
            self._planned[id(batch)] = batch
        return batch

    def take(self, batch: PlannedBatch) -> list[AudioSample | BadSampleError]:
        """Each sample of a planned micro-batch, as `SampleReader.read` returns and raises."""
        self._num_planned, self._num_bytes_planned = self._num_planned - 1, self._num_bytes_planned - batch.num_bytes
        if id(batch) in self._planned:
            # not for each that was taken: of many that are asked for together, more are neighbours
            if batch.begun is None or self._num_bytes_begun <= self._num_bytes_enough:
                self._begin(batch)
            del self._planned[id(batch)]
            self._num_bytes_begun -= batch.num_bytes
        return self._reader.read(batch.refs, batch.begun)

    def _begin(self, first: PlannedBatch) -> None:
        """Ask for a micro-batch, if it wasn't yet, and for those that follow as far as there is room."""
        chosen = [] if first.begun else [first]
        num_bytes = self._num_bytes_begun + sum(batch.num_bytes for batch in chosen)
        for batch in self._planned.values():
            if batch.begun is None and batch is not first:
                if num_bytes + batch.num_bytes > self._most_bytes:
                    break
                num_bytes += batch.num_bytes
                chosen.append(batch)
        begun = iter(self._reader.begin([ref for batch in chosen for ref in batch.refs]))
        for batch in chosen:
            batch.begun = [next(begun) for _ in batch.refs]
        self._num_bytes_begun, self._num_bytes_enough = num_bytes, num_bytes // 2

    def close(self) -> None:
        """Let go of what was asked for and not taken, so that nothing is under way when the process ends."""
        begun = [sample for batch in self._planned.values() for sample in batch.begun or ()]
        self._planned.clear()
        self._num_planned = self._num_bytes_planned = self._num_bytes_begun = self._num_bytes_enough = 0
        for part in (part for sample in begun for part in sample):
            if isinstance(part, FarRange):
                part.give_up()
