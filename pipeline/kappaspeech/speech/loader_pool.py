"""Samples loaded by worker processes, ahead of what needs them."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import sys
from collections.abc import Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeoutError
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from typing import Any

from kappaspeech.errors import DataError
from kappaspeech.parenthood import end_with_parent
from kappaspeech.speech.loading import BadSample, LoadedSample, Loader, LoadOptions
from kappaspeech.speech.sample_reader import SampleRef
from kappaspeech.speech.source import ReadOptions

_MAX_RESTARTS = 3
_POLL_SECONDS = 1.0


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
        """Wait for the load that was begun, and return it. Raises `DataError`."""
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
