"""Work beside a run's steps, now and then: the form in which the loop knows it."""

from __future__ import annotations

from types import TracebackType


class Cadence:
    """Base of all cadences, whose methods do nothing. All ranks call them alike, so each may be a collective.

    The loop opens them as contexts for as long as it takes steps. A reason that is returned stops the run, which continues from
    there at its next start.
    """

    def __enter__(self) -> None:
        pass

    def __exit__(self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None) -> None:
        pass

    def begin(self, step: int) -> str | None:
        """Hook at a start that continues from `step` steps."""

    def after(self, step: int) -> str | None:
        """Hook after one more step, `step` in all."""

    def wish(self) -> str | None:
        """The reason why this rank would rather not take another step. Not a collective: the ranks exchange their wishes."""

    def end(self, step: int, reason: str | None) -> None:
        """Hook after the last step: all steps are taken, or there is a `reason` to stop."""
