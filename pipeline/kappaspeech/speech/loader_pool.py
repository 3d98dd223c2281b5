"""Samples loaded by worker processes, ahead of what needs them."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass

from kappaspeech.errors import DataError
from kappaspeech.escaping import for_terminal
from kappaspeech.parenthood import end_with_parent
from kappaspeech.speech.loading import BadSample, LoadedSample, Loader, LoadOptions
from kappaspeech.speech.read_ahead import PlannedBatch
from kappaspeech.speech.sample_reader import SampleRef
from kappaspeech.speech.source import ReadOptions
from kappaspeech.speech.worker_pool import WorkerPool

_MAX_RESTARTS = 3

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
        self._pool: WorkerPool[Sequence[SampleRef], list[LoadedSample | BadSample]] | None = None
        self._generation = 0
        self._has_told_of_loss = False

    def submit(self, refs: Sequence[SampleRef]) -> Ticket:
        """Begin to load; the result is had from `take`."""
        if self._own is not None:
            return Ticket(refs, None, 0, self._own.plan(refs))
        while True:
            generation = self._generation
            try:
                return Ticket(refs, self._start().submit(refs), generation)
            except BrokenProcessPool as error:
                self._replace(generation, error)

    def take(self, ticket: Ticket) -> list[LoadedSample | BadSample]:
        """Wait for the load that was begun, and return it. Raises `DataError`."""
        if self._own is not None:
            return self._heed_losses(self._own.load(ticket.refs, ticket.planned))
        while True:
            assert ticket.future is not None
            try:
                return self._heed_losses(ticket.future.result())
            except BrokenProcessPool as error:
                self._replace(ticket.generation, error)
                ticket = self.submit(ticket.refs)

    @property
    def has_room(self) -> bool:
        """Return whether it pays to submit more before the first is taken: in the calling thread it is planned, not loaded."""
        return self._own is not None and self._own.has_room

    def _heed_losses(self, loaded: list[LoadedSample | BadSample]) -> list[LoadedSample | BadSample]:
        """Warn of the first shard that is gone while its clips are cached; return `loaded`."""
        lost = next((item.lost_shard for item in loaded if isinstance(item, LoadedSample) and item.lost_shard), None)
        if lost is not None and not self._has_told_of_loss:
            self._has_told_of_loss = True
            told = (
                f"warning: {lost} is gone. Clips whose states are in data.feature_cache_dir are learned with the transcripts "
                "that were cached, also of any other shard that goes. Put the shard back if transcripts were corrected."
            )
            print(for_terminal(told), file=sys.stderr, flush=True)
        return loaded

    def _start(self) -> WorkerPool[Sequence[SampleRef], list[LoadedSample | BadSample]]:
        if self._pool is None:
            arguments = (os.getpid(), self._options, self._read)
            self._pool = WorkerPool(_load_in_worker, num_workers=self._num_workers, prepare=_start_worker, arguments=arguments)
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
        """End the workers, and let go of what was read ahead."""
        if self._own is not None:
            self._own.close()
        if self._pool is not None:
            self._pool.close()
            self._pool = None


@dataclass(frozen=True)
class Ticket:
    """Work that was begun, by which of the pools that followed each other; or planned, in the calling thread."""

    refs: Sequence[SampleRef]
    future: Future[list[LoadedSample | BadSample]] | None
    generation: int
    planned: PlannedBatch | None = None
