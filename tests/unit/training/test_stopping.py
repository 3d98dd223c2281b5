"""Wishes to stop."""

from __future__ import annotations

import os
import signal

import pytest

from kappaspeech.training.stopping import StopRequest


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT])
def test_a_signal_is_a_wish_to_stop_and_handlers_are_put_back(tmp_path, number):
    before = signal.getsignal(number)
    with StopRequest(tmp_path) as stop:
        assert stop.reason() is None
        os.kill(os.getpid(), number)
        assert stop.reason() == signal.Signals(number).name
    assert signal.getsignal(number) is before


def test_a_stop_file_and_a_budget_are_wishes_too(tmp_path):
    with StopRequest(tmp_path, budget_seconds=1e-9) as stop:
        assert stop.reason() == "the time budget"
    (tmp_path / "STOP").touch()
    with StopRequest(tmp_path) as stop:
        assert str(tmp_path / "STOP") in (stop.reason() or "")
