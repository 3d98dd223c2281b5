"""A logger beside the steps: in a thread of its own, so that neither a slow network nor its fault holds up the training."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import suppress
from queue import Empty, Queue

from kappaspeech.escaping import make_logger
from kappaspeech.loggers.logger import Logger, Point

# of about a kilobyte each
_MOST_WAITING = 10_000
# at the end of a run, for what is still waiting; the processors are idle meanwhile
_LAST_SECONDS = 60.0
# if the run was asked to stop: torchrun kills its ranks 30 seconds after it has told them, and the checkpoint comes first
_HURRIED_SECONDS = 10.0
_log = make_logger(__name__)


class Beside:
    """The logger that `open_logger` makes. Whatever it raises is told once, and takes nothing from the run."""

    def __init__(
        self,
        name: str,
        open_logger: Callable[[], Logger],
        *,
        last_seconds: float = _LAST_SECONDS,
        hurried_seconds: float = _HURRIED_SECONDS,
    ) -> None:
        self._name = name
        self._open_logger = open_logger
        self._last_seconds, self._hurried_seconds = last_seconds, hurried_seconds
        # bounded by `_hand_over` and not by itself: its end must always find room
        self._waiting: Queue[Callable[[Logger], None] | None] = Queue()
        self._has_given_up = self._run_failed = False
        self._until = 0.0
        self._giving_up = threading.Lock()
        self._thread = threading.Thread(target=self._work, name=f"logger {name}", daemon=True)
        self._thread.start()

    def add(self, point: Point) -> None:
        """Hand a point over; returns at once."""
        self._hand_over(lambda logger: logger.add(point))

    def flush(self) -> None:
        """Let readers see what was handed over before, as soon as may be."""
        self._hand_over(lambda logger: logger.flush())

    def end(self, *, failed: bool, hurried: bool = False) -> None:
        """Hand over the end; returns at once. `failed`: the run has ended with an error; `hurried`: it was asked to stop."""
        self._run_failed = failed
        if hurried:
            self._last_seconds = min(self._last_seconds, self._hurried_seconds)
        self._until = time.monotonic() + self._last_seconds
        self._waiting.put(None)

    def close(self) -> None:
        """Wait until all is taken, until a minute after `end` at most, or ten seconds if that was hurried."""
        with self._giving_up:
            if self._has_given_up:
                return
        self._thread.join(max(0.0, self._until - time.monotonic()))
        if self._thread.is_alive():
            self._give_up(f"it hasn't taken everything within {self._last_seconds:g} s")

    def _hand_over(self, deed: Callable[[Logger], None]) -> None:
        if self._has_given_up:
            return
        if self._waiting.qsize() >= _MOST_WAITING:
            self._give_up(f"it hasn't taken the last {_MOST_WAITING} points")
            return
        self._waiting.put(deed)

    def _work(self) -> None:
        try:
            logger = self._open_logger()
            try:
                while not self._has_given_up and (deed := self._waiting.get()) is not None:
                    deed(logger)
            finally:
                logger.close(failed=self._run_failed)
        except Exception as error:  # noqa: BLE001 - each library has errors of its own
            self._give_up(f"{type(error).__name__}: {' '.join(str(error).split())}")

    def _give_up(self, why: str) -> None:
        # whoever asks afterwards waits until it is told
        with self._giving_up:
            if self._has_given_up:
                return
            self._has_given_up = True
            _log.warning(
                "training.loggers: %s shows no more of this run (%s). The run goes on; its records have it all.", self._name, why
            )
        # a thread that hangs may hold them for as long as the process lives
        with suppress(Empty):
            while True:
                self._waiting.get_nowait()
        self._waiting.put(None)
