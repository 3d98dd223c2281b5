"""Loggers that fail, hang or lag: the training never does."""

from __future__ import annotations

import threading
import time

from kappaspeech.loggers import beside as beside_module
from kappaspeech.loggers.beside import Beside
from kappaspeech.loggers.logger import Logger, Point
from tests.patience import patience


class Kept(Logger):
    """Keeps what it is given; `fault` is what it raises at a step."""

    def __init__(self, *, fault_at: int | None = None) -> None:
        self.steps: list[int] = []
        self.failed: bool | None = None
        self._fault_at = fault_at

    def add(self, point: Point) -> None:
        if point.step == self._fault_at:
            raise OSError(28, "No space left on device at https://me:password@host/x")
        self.steps.append(point.step)

    def flush(self) -> None:
        pass

    def close(self, *, failed: bool) -> None:
        self.failed = failed


def points(number: int) -> list[Point]:
    return [Point(step, step, {"x": 1.0}) for step in range(number)]


def test_all_points_arrive_in_order_before_the_end():
    kept = Kept()
    beside = Beside("kept", lambda: kept)
    for point in points(100):
        beside.add(point)
    beside.end(failed=True)
    beside.close()
    assert (kept.steps, kept.failed) == (list(range(100)), True)


def test_a_fault_is_told_once_without_secrets_and_ends_the_logger_alone(caplog):
    kept = Kept(fault_at=3)
    beside = Beside("kept", lambda: kept)
    for point in points(50):
        beside.add(point)
    beside.end(failed=False)
    beside.close()
    assert (kept.steps, kept.failed) == ([0, 1, 2], False)
    assert [record.getMessage() for record in caplog.records] == [
        "training.loggers: kept shows no more of this run (OSError: [Errno 28] No space left on device at "
        "https://***@host/x). The run goes on; its records have it all."
    ]


def test_one_that_cannot_be_opened_is_told_once(caplog):
    def fail() -> Logger:
        raise ConnectionError("no route to host")

    beside = Beside("kept", fail)
    for point in points(3):
        beside.add(point)
    beside.flush()
    beside.end(failed=False)
    beside.close()
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "ConnectionError: no route to host" in caplog.text


def test_one_that_hangs_holds_up_neither_the_steps_nor_the_end(caplog):
    release = threading.Event()

    def hang() -> Logger:
        release.wait(patience(60))
        return Kept()

    began = time.monotonic()
    beside = Beside("kept", hang, last_seconds=0.1)
    for point in points(20_000):
        beside.add(point)
    beside.end(failed=False)
    beside.close()
    assert time.monotonic() - began < patience(5)
    release.set()
    assert len(caplog.records) == 1
    assert "hasn't taken the last 10000 points" in caplog.text


def test_one_that_hangs_at_the_end_is_left_behind(caplog):
    release = threading.Event()
    beside = Beside("kept", lambda: (release.wait(patience(60)), Kept())[1], last_seconds=0.05)
    beside.add(points(1)[0])
    beside.end(failed=False)
    beside.close()
    release.set()
    assert "it hasn't taken everything within 0.05 s" in caplog.text


def test_one_that_lags_by_all_that_may_wait_takes_it_and_ends(monkeypatch, caplog):
    monkeypatch.setattr(beside_module, "_MOST_WAITING", 5)
    release, kept = threading.Event(), Kept()
    beside = Beside("kept", lambda: (release.wait(patience(60)), kept)[1], last_seconds=patience(60))
    for point in points(5):
        beside.add(point)
    beside.end(failed=False)
    release.set()
    beside.close()
    assert (kept.steps, kept.failed, caplog.records) == ([0, 1, 2, 3, 4], False, [])


def test_a_run_that_was_asked_to_stop_waits_less(caplog):
    release = threading.Event()
    began = time.monotonic()
    for hurried, seconds in ((True, 0.05), (False, 0.1)):
        beside = Beside("kept", lambda: (release.wait(patience(60)), Kept())[1], last_seconds=0.1, hurried_seconds=0.05)
        beside.end(failed=False, hurried=hurried)
        beside.close()
        assert f"it hasn't taken everything within {seconds:g} s" in caplog.messages[-1]
    release.set()
    assert time.monotonic() - began < patience(5)
