"""Ranks know each other's hosts before the work begins, so that one that dies at once is named with its own."""

from __future__ import annotations

import socket
import threading
import time

import pytest

from kappaspeech.errors import RankFailure
from kappaspeech.ranks import liveness
from kappaspeech.ranks.cluster import SingleProcess
from kappaspeech.ranks.liveness import Watch
from tests.patience import patience


class OneOfTwo(SingleProcess):
    """A rank of two in one process, whose posts lie in a common list; from `is_gone` on, nothing answers."""

    world_size = 2

    def __init__(self, rank: int, posts: list[str], is_gone: threading.Event) -> None:
        super().__init__()
        self.rank, self._all, self._is_gone = rank, posts, is_gone

    def post(self, text: str) -> None:
        if self._is_gone.is_set():
            raise ConnectionError("closed")
        self._all[self.rank] = text

    def read_posts(self) -> list[str]:
        if self._is_gone.is_set():
            raise ConnectionError("closed")
        return list(self._all)


def test_a_rank_that_is_lost_right_after_the_start_is_named_with_its_host():
    posts, is_gone = ["", ""], threading.Event()
    first = OneOfTwo(0, posts, is_gone)
    late = threading.Timer(0.3, lambda: Watch(first)._beat())
    began = time.monotonic()
    late.start()

    def work() -> None:
        with Watch(OneOfTwo(1, posts, is_gone)) as watch:
            assert time.monotonic() - began >= 0.3
            is_gone.set()
            while time.monotonic() - began < patience(20):
                watch.check()
                time.sleep(0.02)

    with pytest.raises(RankFailure, match=f"rank 0 on {socket.gethostname()} failed: .*store is gone"):
        work()
    late.join()


def test_a_rank_that_never_speaks_keeps_the_others_a_few_seconds_at_most(monkeypatch):
    monkeypatch.setattr(liveness, "_MEETING_SECONDS", 0.2)
    began = time.monotonic()
    with Watch(OneOfTwo(0, ["", ""], threading.Event())) as watch:
        assert 0.2 <= time.monotonic() - began < patience(10)
        watch.check()
