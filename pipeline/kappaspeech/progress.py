"""Progress for a person: a bar with rate and time left on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Any

from kappaspeech.escaping import for_terminal

_LINE_INTERVAL_SECONDS = 15.0
_SECONDS_SHOWN = 100
# a narrower terminal has room for how far it is and how long it takes
_WIDE_COLUMNS = 60


def say_duration(seconds: float) -> str:
    """A time for a person: seconds while they are few, else hours and minutes, as in `42 s`, `0:07 h`, `30:37 h`."""
    if seconds < _SECONDS_SHOWN:
        return f"{seconds:.0f} s"
    return f"{hours_minutes(seconds)} h"


def hours_minutes(seconds: float) -> str:
    """A time as a clock shows it, h:mm; a started minute counts as whole."""
    minutes = -(-int(seconds) // 60)
    return f"{minutes // 60}:{minutes % 60:02d}"


class ProgressBar:
    """Progress towards `total` units; silent unless `shown` (rank 0). A context manager.

    A terminal gets a bar. A log gets a line at the start, every fifteen seconds and at the end, so that it stays readable.
    """

    def __init__(self, description: str, *, total: float, shown: bool, done: float = 0.0) -> None:
        self._description = description
        self._total = total
        self._done = done
        self._start = done
        self._shown = shown
        self._detail = ""
        self._bar: Any = None
        self._began = self._last_line = 0.0
        self._printed: tuple[float, str] | None = None

    def __enter__(self) -> ProgressBar:
        self._began = time.monotonic()
        if self._shown and sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, Progress, ProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

            console = Console(stderr=True)
            is_wide = console.width >= _WIDE_COLUMNS
            detail = " {task.fields[detail]}" if is_wide else ""
            columns: list[ProgressColumn] = [TextColumn("{task.description}"), *([BarColumn()] if is_wide else [])]
            columns += [TextColumn(f"{{task.percentage:>3.0f}}%{detail}"), *([TimeElapsedColumn()] if is_wide else [])]
            columns += [TextColumn("left"), TimeRemainingColumn(elapsed_when_finished=False)]
            self._bar = Progress(*columns, console=console)
            self._bar.start()
            self._task = self._bar.add_task(self._description, total=self._total, completed=self._done, detail="")
        elif self._shown:
            self._print_line()
        return self

    def advance(self, amount: float = 1.0, *, detail: str = "") -> None:
        """Count `amount` more units as done; `detail` (loss, rate) is shown behind the bar."""
        self._done += amount
        self._detail = detail
        if self._bar is not None:
            self._bar.update(self._task, completed=self._done, detail=detail)
        elif self._shown and time.monotonic() - self._last_line >= _LINE_INTERVAL_SECONDS:
            self._print_line()

    def say(self, text: str) -> None:
        """Print a line that stays, above the bar."""
        if self._bar is not None:
            self._bar.console.print(for_terminal(f"{self._description}: {text}"), markup=False, highlight=False)
        elif self._shown:
            print(for_terminal(f"{self._description}: {text}"), file=sys.stderr, flush=True)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._bar is not None:
            self._bar.stop()
        elif self._shown and (self._done, self._detail) != self._printed:
            self._print_line()

    def _print_line(self) -> None:
        self._last_line = time.monotonic()
        self._printed = (self._done, self._detail)
        elapsed = self._last_line - self._began
        fraction = self._done / self._total if self._total else 1.0
        advanced = self._done - self._start
        left = f", {say_duration(elapsed / advanced * (self._total - self._done))} left" if advanced > 0 and fraction < 1 else ""
        detail = f" {self._detail}" if self._detail else ""
        print(
            for_terminal(f"{self._description} {fraction:4.0%}{detail}, {say_duration(elapsed)}{left}"),
            file=sys.stderr,
            flush=True,
        )
