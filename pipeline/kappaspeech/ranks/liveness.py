"""Ranks that watch each other, so that one rank's end reaches all within seconds, with its cause.

Between two collectives no rank notices that another is gone. Inside a collective no rank learns why. So each rank posts a
heartbeat that carries its present activity and, if it fails, the reason; a thread reads the others'. On a failure the work's next
`check` raises; if the work is stuck in a long call or a collective, the process ends.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from types import TracebackType
from typing import Any

from kappaspeech.errors import KappaSpeechError, RankFailure
from kappaspeech.escaping import for_terminal
from kappaspeech.processes import read_stat
from kappaspeech.ranks.agreement import is_agreed
from kappaspeech.ranks.broken_exchange import is_broken_collective
from kappaspeech.ranks.cluster import MAX_POST_BYTES, Cluster
from kappaspeech.redaction import redact

Post = dict[str, Any]
_BEAT_SECONDS = 1.0
_RANKS_PER_BEAT = 64
_SHORTEST_BEAT_SECONDS = 0.05
_SILENCE_SECONDS = 15.0
# The time that the work may take to reach a `check` before the process is ended.
_GRACE_SECONDS = 5.0
# The time that entering waits for the others' first posts.
_MEETING_SECONDS = 5.0
_MAX_CAUSE_LETTERS = 300
_SILENT: Post = {"beat": 0, "doing": "", "done": 0.0, "patience": 0.0, "cause": None, "over": False, "place": None}


class Watch:
    """A context manager around work that holds no collective except at its end; one per cluster, since its end is each rank's
    last post.

    Entering waits for the others to enter, a few seconds at most, so that the host of a rank that dies right then is known.
    `describe` gives what else to post with each heartbeat, a few hundred letters of JSON at most; it must not wait for a disk.
    `judge` gets all ranks' posts after each, in rank order, and returns the failure that it sees in them. `on_failure` is called
    with a failure and the last posts, at once and in a thread; `on_fatal` is called before the process is ended from within. With
    `needs_parent`, losing the process that started this one is a failure.
    """

    def __init__(
        self,
        cluster: Cluster,
        *,
        describe: Callable[[], Post] = dict,
        judge: Callable[[Sequence[Post]], RankFailure | None] = lambda _posts: None,
        on_failure: Callable[[RankFailure, Sequence[Post]], None] = lambda _failure, _posts: None,
        on_fatal: Callable[[RankFailure], None] = lambda _failure: None,
        silence_seconds: float = _SILENCE_SECONDS,
        needs_parent: bool = True,
    ) -> None:
        self._cluster = cluster
        self._on_progress: Callable[[float], None] = _tell_nobody
        self._describe, self._judge = describe, judge
        self._on_failure, self._on_fatal = on_failure, on_fatal
        self._silence_seconds = silence_seconds
        # every rank reads every rank's post: with many ranks, each takes longer turns
        self._beat_seconds = _BEAT_SECONDS * max(1.0, cluster.world_size / _RANKS_PER_BEAT)
        self.posts: Sequence[Post] = [_SILENT] * cluster.world_size
        self._doing, self._done, self._patience = "", 0.0, 0.0
        self._cause: tuple[str, int] | None = None
        self._over = False
        self._failure: RankFailure | None = None
        self._stop = threading.Event()
        self._news = threading.Event()
        self._met = threading.Event()
        self._beats = 0
        self._last_beat = time.monotonic()
        self._heard: dict[int, tuple[int, float]] = {}
        self._missing: set[int] = set()
        self._threads: list[threading.Thread] = []
        self._parent = os.getppid() if needs_parent else None
        self._place = own_place()

    def begin(self, what: str, *, patience_seconds: float = 0.0) -> None:
        """Name the activity that begins, and how much longer than usual it may keep this rank from answering."""
        self._doing, self._patience = what, patience_seconds
        self._news.set()

    def advance(self, amount: float) -> None:
        """Count `amount` as done."""
        self._done += amount

    @contextmanager
    def telling(self, on_progress: Callable[[float], None]) -> Iterator[None]:
        """Give `on_progress` all ranks' summed progress for as long as the context is open."""
        self._on_progress = on_progress
        try:
            yield
        finally:
            self._on_progress = _tell_nobody

    def check(self) -> None:
        """Raise `RankFailure` if another rank is known to have failed."""
        if self._failure is not None:
            raise self._failure

    def __enter__(self) -> Watch:
        # with one rank there is nobody to watch, and progress can be reported at once
        if self._cluster.world_size > 1:
            self._beat()
            self._threads = [threading.Thread(target=loop, daemon=True) for loop in (self._run, self._guard)]
            for thread in self._threads:
                thread.start()
            self._met.wait(_MEETING_SECONDS)
            self._met.set()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        try:
            if self._threads and error is not None and not isinstance(error, RankFailure):
                if is_broken_collective(error):
                    self._explain(error)
                code = error.exit_code if isinstance(error, KappaSpeechError) else 1
                told = f"{error}" if isinstance(error, KappaSpeechError) else f"{type(error).__name__}: {error}"
                self._cause = redact(told)[:_MAX_CAUSE_LETTERS], code
                if not is_agreed(error):
                    # the others read the cause from a store that may end with this process
                    time.sleep(3 * self._beat_seconds)
        finally:
            self._over = True
            self._stop.set()
            self._news.set()
            for thread in self._threads:
                thread.join(self._beat_seconds)
            if self._threads and self._failure is None:
                # a store that ended with rank 0's process, which was the first to end, needs no last post
                with suppress(Exception):
                    self._beat()

    def _explain(self, error: BaseException) -> None:
        """Wait for the heartbeats to name the rank whose end broke a collective, and raise that in the error's place."""
        deadline = time.monotonic() + self._silence_seconds + 3 * self._beat_seconds
        while time.monotonic() < deadline and self._failure is None:
            time.sleep(self._beat_seconds / 4)
        if self._failure is not None:
            raise self._failure from error

    def _run(self) -> None:
        while not self._stop.wait(_SHORTEST_BEAT_SECONDS * self._beat_seconds / _BEAT_SECONDS):
            # a new activity is posted at once: a rank that dies of it can't post later
            has_met = self._met.is_set()
            has_news = self._news.wait(self._beat_seconds if has_met else 0)
            self._news.clear()
            try:
                if has_met or has_news:
                    self._beat()
                self._listen()
            except Exception as error:  # noqa: BLE001 - a store that is gone raises whatever its library likes
                if not self._stop.is_set() and self._failure is None:
                    self._fail(0, f"the ranks' common store is gone ({type(error).__name__}), and rank 0 with it")
            self._last_beat = time.monotonic()

    def _beat(self) -> None:
        self._beats += 1
        status = {"beat": self._beats, "doing": self._doing[-200:], "done": self._done, "patience": self._patience}
        post = {**status, "cause": self._cause, "over": self._over, "place": self._place, **self._describe()}
        self._cluster.post(fit(post))

    def _listen(self) -> None:
        now = time.monotonic()
        posts: list[Post] = [json.loads(post) if post else _SILENT for post in self._cluster.read_posts()]
        if now - self._last_beat > 5 * self._beat_seconds:
            # this process itself was held up, or the whole job suspended: the others' silence meanwhile proves nothing
            self._heard = {rank: (beat, now) for rank, (beat, _) in self._heard.items()}
        self.posts = posts
        if all(post["beat"] for post in posts):
            self._met.set()
        for rank, post in enumerate(posts):
            if rank != self._cluster.rank and self._failure is None and not post["over"]:
                self._know(self._examine(rank, post, now))
        if self._failure is None:
            self._know(self._judge(posts))
        self._on_progress(sum(post["done"] for post in posts))

    def _know(self, failure: RankFailure | None) -> None:
        if failure is not None:
            self._failure = failure
            self._met.set()
            self._on_failure(failure, self.posts)

    def _fail(self, rank: int, cause: str) -> None:
        place = self.posts[rank]["place"]
        self._know(RankFailure(rank, cause, host=place[0] if place else None))

    def _examine(self, rank: int, post: Post, now: float) -> RankFailure | None:
        """The failure of another rank, if any, by its post, by its silence, or by its process if that is on this host."""
        host = post["place"][0] if post["place"] else None
        if post["cause"] is not None:
            return RankFailure(rank, post["cause"][0], exit_code=post["cause"][1], host=host, is_told=True)
        doing = f" in {post['doing']}" if post["doing"] else ""
        state = process_state(post["place"])
        if state == "gone":
            if rank in self._missing:
                return RankFailure(rank, f"it ended without a word{doing}: killed, or out of memory (dmesg may tell)", host=host)
            # its last post may have come between the reading of the posts and this look
            self._missing.add(rank)
        beat, since = self._heard.get(rank, (-1, now))
        if post["beat"] != beat:
            self._heard[rank] = (post["beat"], now)
        elif now - since > self._silence_seconds + post["patience"]:
            stopped = ", its process is stopped (SIGSTOP)" if state == "stopped" else ""
            return RankFailure(rank, f"no sign of life for {now - since:.0f} s{doing}{stopped}", host=host)
        return None

    def _guard(self) -> None:
        """End the process if the work doesn't heed a failure, if the store doesn't answer, or if its parent died."""
        known_since: float | None = None
        while not self._stop.wait(self._beat_seconds):
            now = time.monotonic()
            if self._failure is None and now - self._last_beat > self._silence_seconds + self._patience:
                self._fail(0, f"the ranks' common store hasn't answered for {now - self._last_beat:.0f} s")
            orphaned = self._parent not in (None, os.getppid())
            if self._failure is None and orphaned:
                self._fail(self._cluster.rank, "the process that started it is gone")
            if self._failure is not None:
                known_since = now if known_since is None else known_since
                if now - known_since > _GRACE_SECONDS:
                    self._end(self._failure, alone=orphaned)

    def _end(self, failure: RankFailure, *, alone: bool) -> None:
        if alone or self._cluster.rank == voice(failure):
            print(for_terminal(f"error: {failure}"), file=sys.stderr, flush=True)
        self._on_fatal(failure)
        os._exit(failure.exit_code)


def _tell_nobody(_done: float) -> None:
    pass


def fit(post: Post) -> str:
    """A post as JSON that every `Cluster` carries, whatever letters it holds; if it is too long, texts lose their middles."""
    letters = MAX_POST_BYTES
    while True:
        text = json.dumps(post, ensure_ascii=False).encode(errors="replace")
        if len(text) <= MAX_POST_BYTES or letters == 0:
            return text.decode()
        letters //= 2
        post = _shorten(post, letters)


def _shorten(value: Any, letters: int) -> Any:
    if isinstance(value, str) and len(value) > letters:
        return f"{value[: letters // 2]}…{value[len(value) - letters // 2 :]}"
    if isinstance(value, dict):
        return {key: _shorten(item, letters) for key, item in value.items()}
    return [_shorten(item, letters) for item in value] if isinstance(value, list | tuple) else value


def voice(failure: RankFailure) -> int:
    """The one rank that reports a failure that all know: the first, unless that is the one that can't."""
    return 1 if failure.rank == 0 and not failure.is_told else 0


def own_place() -> list[Any] | None:
    """Host, process namespace, id and start of this process, by which other ranks of the host find it; None without /proc."""
    try:
        return [socket.gethostname(), os.readlink("/proc/self/ns/pid"), os.getpid(), read_stat(os.getpid()).started]
    except OSError:
        return None


def process_state(place: Sequence[Any] | None) -> str:
    """The state of a process on this host: "gone", "stopped" or "running"; "unknown" for one of any other host."""
    own = own_place()
    if place is None or own is None or list(place[:2]) != own[:2]:
        return "unknown"
    try:
        found = read_stat(place[2])
    except OSError:
        return "gone"
    if found.started != place[3] or found.state in "ZX":
        return "gone"
    return "stopped" if found.state in "Tt" else "running"
