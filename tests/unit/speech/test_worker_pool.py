"""Calls in processes of their own: what they return and raise, and what becomes of them when a process dies."""

from __future__ import annotations

import os
import signal
import time
from concurrent.futures import CancelledError
from concurrent.futures.process import BrokenProcessPool

import psutil
import pytest

from kappaspeech.errors import DataError
from kappaspeech.speech.worker_pool import WorkerPool
from tests.patience import patience


def prepare(name: str, value: str) -> None:
    os.environ[name] = value


class Unpicklable(Exception):
    def __init__(self) -> None:
        super().__init__("kept at home")
        self.where = lambda: None


def work(item: str) -> tuple[int, str]:
    if item == "error":
        raise DataError("no such shard")
    if item == "odd error":
        raise Unpicklable
    if item == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    if item == "sleep":
        time.sleep(600)
    return os.getpid(), f"{os.environ['PREPARED']}: {item}"


def make(num_workers: int) -> WorkerPool:
    return WorkerPool(work, num_workers=num_workers, prepare=prepare, arguments=("PREPARED", "yes"))


def test_a_call_returns_and_raises_what_it_would_here_and_its_process_ends_with_the_pool():
    pool = make(1)
    answers = [pool.submit(item) for item in ("one", "error", "odd error", "two")]
    (pid, one), (other, two) = answers[0].result(patience(30)), answers[3].result(patience(30))
    assert (one, two, other) == ("yes: one", "yes: two", pid)
    assert pid != os.getpid()
    with pytest.raises(DataError, match="no such shard") as raised:
        answers[1].result()
    assert str(raised.value) == "no such shard"
    assert "in work" in raised.value.__notes__[0]
    with pytest.raises(RuntimeError, match="kept at home"):
        answers[2].result()
    with pytest.raises(Exception, match="pickle"):
        pool.submit(lambda: None).result(patience(30))
    assert pool.submit("three").result(patience(30))[0] == pid
    process = psutil.Process(pid)
    pool.close()
    process.wait(patience(30))


def test_a_process_that_dies_fails_all_that_is_not_done():
    pool = make(2)
    process = psutil.Process(pool.submit("one").result(patience(30))[0])
    answers = [pool.submit(item) for item in ("sleep", "die", "two", "three")]
    for answer in answers:
        with pytest.raises(BrokenProcessPool):
            answer.result(patience(30))
    with pytest.raises(BrokenProcessPool):
        pool.submit("four")
    pool.close()
    process.wait(patience(30))


def test_what_has_not_begun_when_the_pool_is_closed_is_cancelled():
    pool = make(1)
    pid, _ = pool.submit("one").result(patience(30))
    running, waiting = pool.submit("sleep"), pool.submit("two")
    while not running.running():
        time.sleep(0.01)
    pool.close()
    with pytest.raises(CancelledError):
        waiting.result(patience(30))
    assert not running.done()
    os.kill(pid, signal.SIGKILL)
    with pytest.raises(BrokenProcessPool):
        running.result(patience(30))
