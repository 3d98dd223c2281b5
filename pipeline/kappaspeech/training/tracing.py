"""A trace of a few steps, for a profiler's eyes: what processor and GPU did when, and what held the GPU's memory."""

from __future__ import annotations

import gzip
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from kappaspeech.config.training_config import ProfileConfig
from kappaspeech.escaping import for_terminal, make_logger
from kappaspeech.outputs import write_with
from kappaspeech.runs.contents import PROFILE_FOLDER
from kappaspeech.training.cadence import Cadence
from kappaspeech.training.surroundings import Surroundings

_MOST_MEMORY_EVENTS = 200_000
_BLOCK_BYTES = 8 << 20
_TELL_SECONDS = 15.0
_log = make_logger(__name__)


class Tracer:
    """Traces the steps of `options`, if there are any, on this rank, if it is one of those that do. What is computed stays."""

    def __init__(self, options: ProfileConfig | None, around: Surroundings) -> None:
        self._first, self._last = options.steps if options is not None else (0, -1)
        self._traces = options is not None and (options.ranks == "all" or around.is_writer)
        self._stem = around.folder.path / PROFILE_FOLDER / f"steps-{self._first}-{self._last}.rank-{around.cluster.rank}"
        self._profiler: Any = None
        self._tick = around.phases.tick

    def begin(self, step: int) -> None:
        """Begin before the next step, number `step`, if it is the first of those to trace, or after a resumption one of them."""
        if not self._traces or self._profiler is not None or not self._first <= step <= self._last:
            return
        import torch
        from torch.profiler import ProfilerActivity, profile

        activities = [ProfilerActivity.CPU]
        if torch.cuda.is_available():
            activities.append(ProfilerActivity.CUDA)
            torch.cuda.memory._record_memory_history(max_entries=_MOST_MEMORY_EVENTS)
        self._profiler = profile(activities=activities)
        self._profiler.start()

    def end(self, step: int) -> None:
        """Write the trace, once `step` steps are taken and the last of those to trace is among them."""
        if self._profiler is not None and step > self._last:
            self.write()

    def write(self) -> None:
        """Write what was traced so far. A disk that takes it not costs the trace, and no more."""
        profiler, self._profiler = self._profiler, None
        if profiler is None:
            return
        try:
            # after a CUDA error it may fail, and must not hide that one
            profiler.stop()
            told = f"training.profile: writing {self._stem}.json.gz, which takes minutes if the steps were large"
            print(for_terminal(told), file=sys.stderr, flush=True)
            write_with(self._stem.with_name(f"{self._stem.name}.json.gz"), lambda path: _write_trace(profiler, path, self._tick))
            _write_memory(self._stem.with_name(f"{self._stem.name}.memory.pickle"))
        except (OSError, RuntimeError) as error:
            _log.warning("training.profile: the trace can't be written (%s). The run goes on.", error)


def _write_trace(profiler: Any, path: Path, tick: Callable[[], None]) -> None:
    """Write the trace, telling how far it is, and showing signs of life: other ranks may wait for this one. torch's own part
    shows none."""
    # the profiler goes by a name's ending
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=".", suffix=".json") as plain:
        profiler.export_chrome_trace(plain.name)
        tick()
        told_seconds, total = time.monotonic(), Path(plain.name).stat().st_size
        with Path(plain.name).open("rb") as source, gzip.open(path, "wb", compresslevel=5) as target:
            while block := source.read(_BLOCK_BYTES):
                target.write(block)
                tick()
                if time.monotonic() - told_seconds >= _TELL_SECONDS:
                    told_seconds = time.monotonic()
                    share = f"{source.tell() / total:.0%} of {total / 1e6:,.0f} MB are compressed"
                    print(for_terminal(f"training.profile: {share}"), file=sys.stderr, flush=True)


def _write_memory(path: Path) -> None:
    import torch

    if torch.cuda.is_available():
        write_with(path, lambda temporary: torch.cuda.memory._dump_snapshot(str(temporary)))  # type: ignore[no-untyped-call]
        torch.cuda.memory._record_memory_history(enabled=None)


class BeginTrace(Cadence):
    """Comes last, so that what other cadences do before the first step isn't in the trace."""

    def __init__(self, tracer: Tracer) -> None:
        self._tracer = tracer

    def begin(self, step: int) -> str | None:
        self._tracer.begin(step)
        return None

    def after(self, step: int) -> str | None:
        self._tracer.begin(step)
        return None


class EndTrace(Cadence):
    """Comes first, so that what other cadences do after the last step isn't in the trace."""

    def __init__(self, tracer: Tracer) -> None:
        self._tracer = tracer

    def __exit__(self, *_: object) -> None:
        self._tracer.write()

    def after(self, step: int) -> str | None:
        self._tracer.end(step)
        return None

    def end(self, step: int, reason: str | None) -> None:  # noqa: ARG002 - wherever it stops
        self._tracer.write()
