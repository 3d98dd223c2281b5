"""What is done beside a run's steps, now and then: the form in which the loop knows it."""

from __future__ import annotations

from types import TracebackType


class Cadence:
    """Each method does nothing until a kind of cadence says what. All ranks call them alike, so that each may be a collective.

    The loop opens them as contexts for as long as it takes steps. A reason that is returned stops the run, which goes on from
    there at its next start.
    """

    def __enter__(self) -> None:
        pass

    def __exit__(self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None) -> None:
        pass

    def begin(self, step: int) -> str | None:
        """`step` steps have been taken, and a start goes on from there."""

    def after(self, step: int) -> str | None:
        """One more has been taken, `step` in all."""

    def wish(self) -> str | None:
        """Why this rank would rather not take another step; no collective, for the ranks tell each other."""

    def end(self, step: int, reason: str | None) -> None:
        """No more steps are taken: all are, or there is a `reason`."""
