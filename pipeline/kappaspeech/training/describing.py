"""The run's page for people, run.md, kept up to date while the run trains."""

from __future__ import annotations

import time

from kappaspeech.training.cadence import Cadence
from kappaspeech.training.forecast import Forecast
from kappaspeech.training.surroundings import Surroundings

# a page is read in seconds and written in milliseconds
_INTERVAL_SECONDS = 60.0


class Describe(Cadence):
    """Writes the present step and the time left into run.md, once a minute at most. Rank 0 writes, and no rank waits for it."""

    def __init__(self, forecast: Forecast, around: Surroundings) -> None:
        self._forecast = forecast
        self._around = around
        self._due = 0.0

    def after(self, step: int) -> str | None:
        if not self._around.is_writer or time.monotonic() < self._due:
            return None
        self._around.lease.check()
        self._around.folder.describe(seconds_left=self._forecast.seconds_left(step))
        self._due = time.monotonic() + _INTERVAL_SECONDS
        return None
