"""trackio: a file in the run folder, or a Space or server of one's own."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from typing import Any, TextIO, cast

from kappaspeech.loggers.logger import Point, RunToShow

_PROJECT = "kappaspeech"
_NUM_ID_LETTERS = 8


class TrackioLogger:
    """Shows a run where TRACKIO_DIR, TRACKIO_SPACE_ID or TRACKIO_SERVER_URL say, else in the run folder.

    trackio knows a run by its name, so the name holds the id too.
    """

    def __init__(self, run: RunToShow) -> None:
        # it looks there as it is loaded
        os.environ.setdefault("TRACKIO_DIR", str(run.folder.absolute()))
        import trackio

        with _silence():
            self._run: Any = trackio.init(
                project=os.environ.get("TRACKIO_PROJECT") or _PROJECT,
                name=f"{run.name} {run.run_id[:_NUM_ID_LETTERS]}",
                config=dict(run.config),
                resume="allow",
                embed=False,
                auto_log_gpu=False,
                auto_log_cpu=False,
            )

    def add(self, point: Point) -> None:
        self._run.log(dict(point.values), step=point.step)

    def flush(self) -> None:
        pass

    def close(self, *, failed: bool) -> None:  # noqa: ARG002 - its runs have no status
        with _silence():
            self._run.finish()


class _OthersWords:
    """Standard output for all threads but the one that made this."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._silent = threading.get_ident()

    def write(self, text: str) -> int:
        return len(text) if threading.get_ident() == self._silent else self._stream.write(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextmanager
def _silence() -> Iterator[None]:
    """Keep trackio's lines from standard output, which is the command's."""
    with redirect_stdout(cast(TextIO, _OthersWords(sys.stdout))):
        yield
