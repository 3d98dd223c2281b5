"""A run's id for its loggers: one for all starts."""

from __future__ import annotations

import pytest

from kappaspeech.config.run_config import RunConfig
from kappaspeech.loggers.logger import RunToShow
from kappaspeech.runs import shown_run
from kappaspeech.runs.shown_run import show_curves
from tests.shown_runs import SECRET, make_config


@pytest.fixture
def described(monkeypatch):
    """The run as each logger would be told of it; none is made."""
    found: list[RunToShow] = []
    monkeypatch.setattr(shown_run, "Curves", lambda names, describe, **_told: found.extend(map(describe, names)))
    return found


def show(config: RunConfig | None, folder) -> None:
    show_curves(folder, config, resume_step=3, told={})


def test_every_start_and_logger_has_the_same_id_and_no_secret(tmp_path, described):
    config = make_config(tmp_path, "wandb", "tensorboard", "mlflow")
    show(config, tmp_path / "run")
    show(config, tmp_path / "run")
    assert len({run.run_id for run in described}) == 1
    assert [run.folder.name for run in described[:3]] == ["wandb", "tensorboard", "mlflow"]
    assert {(run.name, run.resume_step) for run in described} == {(config.arm, 3)}
    assert described[0].config["data"]["train"][0]["shards"] == "https://***@host/x.tar?***"
    assert SECRET not in str(described)


def test_an_id_that_cannot_be_read_is_told_and_made_anew(tmp_path, described, caplog):
    config = make_config(tmp_path, "mlflow")
    (tmp_path / "run").mkdir()
    (tmp_path / "run/loggers.json").write_text("{")
    show(config, tmp_path / "run")
    show(config, tmp_path / "run")
    assert len({run.run_id for run in described}) == 1
    assert len(caplog.records) == 1
    assert "the loggers begin a new run" in caplog.text


def test_tensorboard_alone_needs_no_id(tmp_path, described):
    show(None, tmp_path / "run")
    show(make_config(tmp_path, "tensorboard"), tmp_path / "run")
    show(make_config(tmp_path), tmp_path / "run")
    assert [run.run_id for run in described] == ["", ""]
    assert not (tmp_path / "run").exists()
