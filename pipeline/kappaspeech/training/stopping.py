"""Wishes to stop, from signals, a file, a time budget or a launcher that is gone; the ranks agree on them between steps."""

from __future__ import annotations

import signal
import time
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

from kappaspeech.errors import ConfigError
from kappaspeech.ranks.launch_parent import LaunchParent
from kappaspeech.runs.contents import STOP_FILE
from kappaspeech.signals import Handling


class StopRequest:
    """The reason why this rank wishes to stop, if it has one. Handlers are installed for as long as the context is open."""

    def __init__(self, run_dir: Path, *, budget_seconds: float | None = None, launcher: LaunchParent | None = None) -> None:
        self._launcher = launcher
        self._stop_file = run_dir / STOP_FILE
        self._deadline = None if budget_seconds is None else time.monotonic() + budget_seconds
        # the reason that has come up so far, without a look at the disk
        self.known_reason: str | None = None
        self._handling = Handling(self._on_signal)

    def __enter__(self) -> StopRequest:
        self._handling.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self._handling.__exit__()

    def reason(self) -> str | None:
        """The first cause to stop that has come up on this rank, or None."""
        if self.known_reason is None:
            if self._stop_file.exists():
                self.known_reason = f"the file {self._stop_file}"
            elif self._deadline is not None and time.monotonic() >= self._deadline:
                self.known_reason = "the time budget"
            elif self._launcher is not None and self._launcher.is_gone():
                self.known_reason = "the end of its launcher"
        return self.known_reason

    def clear_file(self) -> None:
        """Remove the stop file once it has been obeyed, so that it doesn't stop the next start."""
        self._stop_file.unlink(missing_ok=True)

    def _on_signal(self, number: int, _frame: FrameType | None) -> None:
        self.known_reason = self.known_reason or signal.Signals(number).name


def refuse_old_stop_file(run_dir: Path) -> None:
    """Raise `ConfigError` if somebody left a stop file while no run was there to obey it."""
    path = run_dir / STOP_FILE
    if path.exists():
        raise ConfigError(f"{path} was there before this start, which it would stop at once. Remove it to train.")


def first_wish(wishes: Sequence[str | None]) -> str | None:
    """The lowest rank's reason to stop, of those that have one."""
    return next((f"{why} on rank {rank}" for rank, why in enumerate(wishes) if why), None)
