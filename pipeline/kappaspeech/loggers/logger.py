"""The one form in which a run knows what shows its curves."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol


@dataclass(frozen=True)
class RunToShow:
    """The run whose curves a logger shows, as the logger is told of it.

    `folder` is the logger's own in the run folder. `run_id` stays the same at every start of the run. `config` holds no secrets.
    """

    folder: Path
    run_id: str
    name: str
    config: Mapping[str, Any]
    resume_step: int


@dataclass(frozen=True)
class Point:
    """Numbers of a `step`. `turn` grows from point to point, also from an evaluation after so many steps to the next of these,
    which bears the same number; it is the same wherever the run is resumed."""

    step: int
    turn: int
    values: Mapping[str, float]


class Logger(Protocol):
    """Takes the points of a run in order, in one thread, from its making to `close`. May raise whatever its library does."""

    def add(self, point: Point) -> None: ...

    def flush(self) -> None:
        """Let readers see what was added so far."""

    def close(self, *, failed: bool) -> None:
        """End the showing. `failed`: the run has ended with an error."""
