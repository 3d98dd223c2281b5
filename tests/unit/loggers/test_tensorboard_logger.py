"""TensorBoard's files, read by TensorBoard's own reader."""

from __future__ import annotations

from pathlib import Path

import pytest

from kappaspeech.loggers.tensorboard_logger import TensorBoardLogger
from tests.shown_runs import holds_secret, make_config, tell_cut_and_resumed


def test_a_run_that_was_cut_shows_each_step_once(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    assert TensorBoardLogger.__doc__
    config = make_config(tmp_path, "tensorboard")
    shown = tell_cut_and_resumed(config)
    curves = EventAccumulator(str(Path(config.run_dir, "tensorboard"))).Reload()
    found = [(name, item.step, item.value) for name in curves.Tags()["scalars"] for item in curves.Scalars(name)]
    assert len(found) == len(shown)
    assert {(name, step): value for name, step, value in found} == pytest.approx(shown)
    assert not Path(config.run_dir, "loggers.json").exists()
    assert holds_secret(tmp_path) == []
