"""Ranks as processes of this machine, none of which outlives a start that fails."""

from __future__ import annotations

import subprocess

import pytest

from kappaspeech.ranks import workers


def test_a_rank_that_cant_be_started_ends_those_that_were(monkeypatch):
    started: list[subprocess.Popen[bytes]] = []

    class Processes(subprocess.Popen[bytes]):
        def __init__(self, _command, **options) -> None:
            if len(started) == 2:
                raise BlockingIOError(11, "Resource temporarily unavailable")
            super().__init__(["sleep", "60"], **options)
            started.append(self)

    monkeypatch.setattr(subprocess, "Popen", Processes)
    with pytest.raises(BlockingIOError):
        workers.run_workers(["scan"], num_workers=3)
    assert [process.returncode for process in started] == [-15, -15]
