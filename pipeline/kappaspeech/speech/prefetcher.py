"""Work done ahead in one thread."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from typing import Generic, TypeVar

Made = TypeVar("Made")


class Prefetcher(Generic[Made]):
    """Calls `make` ahead in one thread and hands out its results in order; what it raises is raised in `take`."""

    def __init__(self, make: Callable[[], Made], *, depth: int) -> None:
        self._make = make
        self._ready: queue.Queue[Made | BaseException] = queue.Queue(maxsize=max(depth, 1))
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="speech-prefetch", daemon=True)

    def __enter__(self) -> Prefetcher[Made]:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        while not self._ready.empty():
            self._ready.get_nowait()
        self._thread.join(timeout=10)

    def take(self) -> Made:
        """The next result, when it is made."""
        item = self._ready.get()
        if isinstance(item, BaseException):
            raise item
        return item

    def _run(self) -> None:
        while not self._stopped.is_set():
            item: Made | BaseException
            try:
                item = self._make()
            except BaseException as error:  # noqa: BLE001 - handed to the consumer, whatever it is
                item = error
            while not self._stopped.is_set():
                try:
                    self._ready.put(item, timeout=0.2)
                    break
                except queue.Full:
                    continue
            if isinstance(item, BaseException):
                return
