"""trackio's file in the run folder, read by trackio's own reader."""

from __future__ import annotations

import os
import sys
import threading
from pathlib import Path

import pytest

from kappaspeech.loggers.trackio_logger import _silence
from tests.shown_runs import holds_secret, make_config, tell_cut_and_resumed


def test_a_run_that_was_cut_is_one_run_and_shows_each_step_once(tmp_path, monkeypatch, capsys):
    if "trackio" in sys.modules:
        pytest.skip("trackio has chosen its folder already")
    # another test's thread may have set it
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "run/trackio"))
    from trackio.sqlite_storage import SQLiteStorage

    config = make_config(tmp_path, "trackio")
    shown = tell_cut_and_resumed(config)
    assert Path(os.environ["TRACKIO_DIR"]) == Path(config.run_dir, "trackio")
    (name,) = SQLiteStorage.get_runs("kappaspeech")
    assert name.startswith(config.arm)
    rows = SQLiteStorage.get_logs("kappaspeech", name)
    found = [(key, row["step"], value) for row in rows for key, value in row.items() if "/" in key]
    assert len(found) == len(shown)
    assert {(key, step): value for key, step, value in found} == pytest.approx(shown)
    assert SQLiteStorage.get_run_config("kappaspeech", name)["seed"] == config.seed
    assert holds_secret(Path(config.run_dir)) == []
    assert capsys.readouterr().out == ""


def test_only_the_loggers_thread_is_silent(capsys):
    with _silence():
        print("of this thread")
        other = threading.Thread(target=print, args=("of another",))
        other.start()
        other.join()
    print("afterwards")
    assert capsys.readouterr().out == "of another\nafterwards\n"
