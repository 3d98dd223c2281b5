"""Handlers of signals for a while."""

from __future__ import annotations

import os
import signal

from kappaspeech.signals import ENDING, Handling


def test_signals_are_handled_inside_and_as_before_outside():
    before = {number: signal.getsignal(number) for number in ENDING}
    seen: list[int] = []
    with Handling(lambda number, _frame: seen.append(number)):
        for number in ENDING:
            os.kill(os.getpid(), number)
        assert seen == list(ENDING)
    assert {number: signal.getsignal(number) for number in ENDING} == before
