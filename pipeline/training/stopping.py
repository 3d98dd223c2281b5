"""Wishes to stop, from signals, a file or a time budget; the ranks agree on them between steps."""

from __future__ import annotations

import signal
import time
from pathlib import Path
from types import FrameType

STOP_FILE_NAME = "STOP"
# SIGUSR1 is what SLURM sends ahead of a time limit, SIGTERM what ends a job, SIGINT is Ctrl-C.
_SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)


class StopRequest:
    """Why this rank wishes to stop, if it does. Handlers are installed for as long as the context is open."""

    def __init__(self, run_dir: Path, *, budget_seconds: float | None = None) -> None:
        self._stop_file = run_dir / STOP_FILE_NAME
        self._deadline = None if budget_seconds is None else time.monotonic() + budget_seconds
        self._signal: str | None = None
        self._previous: dict[int, object] = {}

    def __enter__(self) -> StopRequest:
        for number in _SIGNALS:
            self._previous[number] = signal.signal(number, self._on_signal)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def reason(self) -> str | None:
        """A cause to stop that has come up on this rank, or None."""
        if self._signal is not None:
            return self._signal
        if self._stop_file.exists():
            return f"the file {self._stop_file}"
        if self._deadline is not None and time.monotonic() >= self._deadline:
            return "the time budget"
        return None

    def _on_signal(self, number: int, _frame: FrameType | None) -> None:
        self._signal = signal.Signals(number).name
