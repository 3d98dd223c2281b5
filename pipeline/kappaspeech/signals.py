"""Handlers of signals, in place for as long as a context is open."""

from __future__ import annotations

import signal
from collections.abc import Callable, Sequence
from types import FrameType

# SIGUSR1 is what SLURM sends ahead of a time limit, SIGTERM what ends a job, SIGINT is Ctrl-C.
ENDING = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)

Handler = Callable[[int, FrameType | None], None]


class Handling:
    """A context in which `handler` is called for signals; for the main thread. What was there before comes back."""

    def __init__(self, handler: Handler, *, numbers: Sequence[int] = ENDING) -> None:
        self._handler = handler
        self._numbers = numbers
        self._previous: dict[int, object] = {}

    def __enter__(self) -> None:
        for number in self._numbers:
            self._previous[number] = signal.signal(number, self._handler)

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)  # type: ignore[arg-type]
