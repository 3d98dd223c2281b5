"""Ranks that watch each other while each works alone, so that one's end is everyone's within seconds, with its cause.

Between two collectives nobody notices that a rank is gone. So each rank posts a heartbeat that carries its progress and,
should it fail, the reason; a thread reads the others'. On a failure the work is told at its next `check`; where it is
stuck in a long call or a collective, the process ends.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any

from pipeline.cluster import Cluster
from pipeline.errors import KappaSpeechError, RankFailure

_BEAT_SECONDS = 1.0
_SHORTEST_BEAT_SECONDS = 0.05
_SILENCE_SECONDS = 15.0
# How long the work may take to reach a `check` before the process is ended.
_GRACE_SECONDS = 5.0
_MAX_CAUSE_LETTERS = 300
_SILENT = {"beat": 0, "doing": "", "done": 0.0, "patience": 0.0, "cause": None}


class Watch:
    """A context manager around work that holds no collective but the last. `on_progress` gets all ranks' summed progress."""

    def __init__(self, cluster: Cluster, *, on_progress: Callable[[float], None] = lambda _done: None) -> None:
        self._cluster = cluster
        self._on_progress = on_progress
        self._doing, self._done, self._patience = "", 0.0, 0.0
        self._cause: tuple[str, int] | None = None
        self._failure: RankFailure | None = None
        self._stop = threading.Event()
        self._news = threading.Event()
        self._beats = 0
        self._last_beat = time.monotonic()
        self._heard: dict[int, tuple[int, float]] = {}
        self._threads: list[threading.Thread] = []
        self._parent = os.getppid()

    def begin(self, what: str, *, patience_seconds: float = 0.0) -> None:
        """Say what is being done, and how long it may keep this rank from answering beyond the usual."""
        self._doing, self._patience = what, patience_seconds
        self._news.set()

    def advance(self, amount: float) -> None:
        """Count `amount` as done."""
        self._done += amount

    def check(self) -> None:
        """Raise `RankFailure` where another rank is known to have failed."""
        if self._failure is not None:
            raise self._failure

    def __enter__(self) -> Watch:
        # with one rank there is nobody to watch, and progress can be told at once
        if self._cluster.world_size > 1:
            self._beat()
            self._threads = [threading.Thread(target=loop, daemon=True) for loop in (self._run, self._guard)]
            for thread in self._threads:
                thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        try:
            if self._threads and isinstance(error, RuntimeError):
                self._explain(error)
            elif self._threads and error is not None and not isinstance(error, RankFailure):
                code = error.exit_code if isinstance(error, KappaSpeechError) else 1
                self._cause = f"{error or type(error).__name__}"[:_MAX_CAUSE_LETTERS], code
                # the others read the cause from a store that may end with this process
                time.sleep(3 * _BEAT_SECONDS)
        finally:
            self._stop.set()
            self._news.set()
            for thread in self._threads:
                thread.join(_BEAT_SECONDS)

    def _explain(self, error: RuntimeError) -> None:
        """A collective broke: wait for the heartbeats to say which rank is gone, and raise that in its place."""
        deadline = time.monotonic() + _SILENCE_SECONDS + 3 * _BEAT_SECONDS
        while time.monotonic() < deadline and self._failure is None:
            time.sleep(_BEAT_SECONDS / 4)
        if self._failure is not None:
            raise self._failure from error

    def _run(self) -> None:
        while not self._stop.wait(_SHORTEST_BEAT_SECONDS):
            # what is begun is told at once: a rank that dies of it can't tell later
            self._news.wait(_BEAT_SECONDS)
            self._news.clear()
            try:
                self._beat()
                self._listen()
            except Exception as error:  # noqa: BLE001 - a store that is gone raises whatever its library likes
                if not self._stop.is_set() and self._failure is None:
                    cause = f"the ranks' common store is gone ({type(error).__name__}), and rank 0 with it"
                    self._failure = RankFailure(0, cause)
            self._last_beat = time.monotonic()

    def _beat(self) -> None:
        self._beats += 1
        status = {"beat": self._beats, "doing": self._doing[-200:], "done": self._done, "patience": self._patience}
        self._cluster.post(json.dumps({**status, "cause": self._cause}))

    def _listen(self) -> None:
        now, total = time.monotonic(), 0.0
        for rank, post in enumerate(self._cluster.read_posts()):
            status: dict[str, Any] = json.loads(post) if post else _SILENT
            total += status["done"]
            if rank == self._cluster.rank or self._failure is not None:
                continue
            if status["cause"] is not None:
                self._failure = RankFailure(rank, status["cause"][0], exit_code=status["cause"][1])
            beat, since = self._heard.get(rank, (-1, now))
            if status["beat"] != beat:
                self._heard[rank] = (status["beat"], now)
            elif now - since > _SILENCE_SECONDS + status["patience"]:
                doing = f" while measuring {status['doing']}" if status["doing"] else ""
                self._failure = RankFailure(rank, f"no sign of life for {now - since:.0f} s{doing}")
        self._on_progress(total)

    def _guard(self) -> None:
        """End the process where the work doesn't heed a failure, where the store doesn't answer, or where its parent died."""
        known_since: float | None = None
        while not self._stop.wait(_BEAT_SECONDS):
            now = time.monotonic()
            if self._failure is None and now - self._last_beat > _SILENCE_SECONDS + self._patience:
                self._failure = RankFailure(0, f"the ranks' common store hasn't answered for {now - self._last_beat:.0f} s")
            if self._failure is None and os.getppid() != self._parent:
                self._failure = RankFailure(self._cluster.rank, "the process that started it is gone")
            if self._failure is not None:
                known_since = now if known_since is None else known_since
                if now - known_since > _GRACE_SECONDS:
                    print(f"error: {self._failure}", file=sys.stderr, flush=True)
                    os._exit(self._failure.exit_code)
