"""A logger beside the steps: in a thread of its own, so that neither a slow network nor its fault holds up the training."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import suppress
from queue import Empty, Full, Queue

from kappaspeech.escaping import make_logger
from kappaspeech.loggers.logger import Logger, Point

# of about a kilobyte each
_MOST_WAITING = 10_000
# at the end of a run, for what is still waiting; the processors are idle meanwhile
_LAST_SECONDS = 60.0
_log = make_logger(__name__)


class Beside:
    """The logger that `open_logger` makes. Whatever it raises is told once, and takes nothing from the run."""

    def __init__(self, name: str, open_logger: Callable[[], Logger], *, last_seconds: float = _LAST_SECONDS) -> None:
        self._name = name
        self._open_logger = open_logger
        self._last_seconds = last_seconds
        self._waiting: Queue[Callable[[Logger], None] | None] = Queue(_MOST_WAITING)
        self._has_given_up = self._run_failed = False
        self._giving_up = threading.Lock()
        self._thread = threading.Thread(target=self._work, name=f"logger {name}", daemon=True)
        self._thread.start()

    def add(self, point: Point) -> None:
        """Hand a point over; returns at once."""
        self._hand_over(lambda logger: logger.add(point))

    def flush(self) -> None:
        """Let readers see what was handed over before, as soon as may be."""
        self._hand_over(lambda logger: logger.flush())

    def close(self, *, failed: bool) -> None:
        """Wait until all is taken, a minute at most. `failed`: the run has ended with an error."""
        self._run_failed = failed
        with self._giving_up:
            if self._has_given_up:
                return
        with suppress(Full):
            self._waiting.put_nowait(None)
        self._thread.join(self._last_seconds)
        if self._thread.is_alive():
            self._give_up(f"it hasn't taken everything within {self._last_seconds:g} s")

    def _hand_over(self, deed: Callable[[Logger], None]) -> None:
        if self._has_given_up:
            return
        try:
            self._waiting.put_nowait(deed)
        except Full:
            self._give_up(f"it hasn't taken the last {_MOST_WAITING} points")

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
