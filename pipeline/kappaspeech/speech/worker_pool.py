"""Calls made in processes of their own, each with a pipe of its own, so that none waits for a lock that a dead one held."""

from __future__ import annotations

import contextlib
import multiprocessing
import pickle
import queue
import threading
import traceback
from collections.abc import Callable
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any, Generic, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")

_CAUSE = "a process of the pool has died"


class WorkerPool(Generic[Item, Result]):
    """Calls `work` in up to `num_workers` processes, in each of which `prepare(*arguments)` has been called first.

    One that dies breaks the pool, whatever it was doing: what isn't done yet fails with `BrokenProcessPool`.
    """

    def __init__(
        self, work: Callable[[Item], Result], *, num_workers: int, prepare: Callable[..., None], arguments: tuple[Any, ...]
    ) -> None:
        self._work, self._prepare, self._arguments = work, prepare, arguments
        self._waiting: queue.SimpleQueue[tuple[Item, Future[Result]] | None] = queue.SimpleQueue()
        self._processes: list[BaseProcess] = []
        self._lock = threading.Lock()
        self._is_broken = self._is_closed = False
        self._threads = [threading.Thread(target=self._serve, name="worker-pool", daemon=True) for _ in range(num_workers)]
        for thread in self._threads:
            thread.start()

    def submit(self, item: Item) -> Future[Result]:
        """Begin a call; what it raises, its result raises. Raises `BrokenProcessPool`."""
        future: Future[Result] = Future()
        # under the lock, so that nothing comes after a break has emptied the queue
        with self._lock:
            assert not self._is_closed
            if self._is_broken:
                raise BrokenProcessPool(_CAUSE)
            self._waiting.put((item, future))
        return future

    def close(self) -> None:
        """End the processes as soon as each has done what it is doing; what hasn't begun is cancelled."""
        with self._lock:
            self._is_closed = True
            for future in self._empty():
                future.cancel()

    def _serve(self) -> None:
        """Hand one process its items, one after the other. It is started for the first."""
        started: tuple[BaseProcess, Connection] | None = None
        while (taken := self._waiting.get()) is not None:
            item, future = taken
            future.set_running_or_notify_cancel()
            try:
                started = started or self._start()
                is_done, value = pickle.loads(self._ask(*started, item))
            except Exception as error:  # noqa: BLE001 - handed to whoever waits for the result, whatever it is
                is_done, value = False, error
            if is_done:
                future.set_result(value)
            else:
                future.set_exception(value)
        if started is not None:
            process, connection = started
            # without its other end it ends
            connection.close()
            process.join()

    def _start(self) -> tuple[BaseProcess, Connection]:
        # neither torch nor fsspec survives a fork of a process that has used it
        context = multiprocessing.get_context("spawn")
        own, other = context.Pipe()
        process = context.Process(target=_run, args=(other, self._work, self._prepare, self._arguments), daemon=True)
        with self._lock:
            if self._is_broken:
                raise BrokenProcessPool(_CAUSE)
            process.start()
            self._processes.append(process)
        # while a copy of this end is open, nobody learns that the worker has died
        other.close()
        return process, own

    def _ask(self, process: BaseProcess, connection: Connection, item: Item) -> bytes:
        """The process's answer, packed. Raises `BrokenProcessPool` if it has died, also in the middle of an answer."""
        try:
            connection.send(item)
            if connection not in wait([connection, process.sentinel]):
                raise EOFError
            return connection.recv_bytes()
        except (EOFError, OSError) as error:
            self._break()
            raise BrokenProcessPool(_CAUSE) from error

    def _break(self) -> None:
        with self._lock:
            self._is_broken = True
            for process in self._processes:
                process.kill()
            for future in self._empty():
                future.set_exception(BrokenProcessPool(_CAUSE))

    def _empty(self) -> list[Future[Result]]:
        """Take out what hasn't begun, and let every thread come to its end."""
        futures = []
        with contextlib.suppress(queue.Empty):
            while True:
                if (taken := self._waiting.get_nowait()) is not None:
                    futures.append(taken[1])
        for _ in self._threads:
            self._waiting.put(None)
        return futures


def _run(connection: Connection, work: Callable[[Any], Any], prepare: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    """Serve as a worker until the pool closes its end of the pipe."""
    prepare(*arguments)
    with contextlib.suppress(EOFError, ConnectionError):
        while True:
            item = connection.recv()
            connection.send_bytes(_answer(work, item))


def _answer(work: Callable[[Any], Any], item: Any) -> bytes:
    try:
        return pickle.dumps((True, work(item)))
    except Exception as error:  # noqa: BLE001 - the caller's to know, whatever it is
        where = f"In a worker process:\n{traceback.format_exc()}"
        error.add_note(where)
        try:
            return pickle.dumps((False, error))
        except Exception:  # noqa: BLE001 - then in words
            return pickle.dumps((False, RuntimeError(where)))
