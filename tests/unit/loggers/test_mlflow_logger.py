"""MLflow's runs in the run folder, read by MLflow's own client."""

from __future__ import annotations

from pathlib import Path

import pytest

from kappaspeech.loggers.mlflow_logger import flatten
from tests.shown_runs import holds_secret, make_config, said, tell, tell_cut_and_resumed


def test_a_configuration_is_flat_by_dotted_keys():
    config = {"data": {"train": [{"shards": "a"}, {"shards": "b"}], "test": []}, "seed": 17, "none": None}
    assert flatten(config) == {
        "data.train.0.shards": "a",
        "data.train.1.shards": "b",
        "data.test": "[]",
        "seed": "17",
        "none": "None",
    }


@pytest.fixture
def client(tmp_path, monkeypatch):
    """Reads the store of the run in `tmp_path`/run."""
    mlflow = pytest.importorskip("mlflow", reason="MLflow isn't installed (the extra mlflow)")
    pytest.importorskip("sqlalchemy", reason="SQLAlchemy isn't installed (the extra mlflow)")
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME"):
        monkeypatch.delenv(name, raising=False)
    return mlflow.MlflowClient(f"sqlite:///{tmp_path}/run/mlflow/mlflow.db")


def test_a_run_that_was_cut_is_one_run_and_shows_each_step_once(tmp_path, client):
    config = make_config(tmp_path, "mlflow")
    shown = tell_cut_and_resumed(config)
    (experiment,) = client.search_experiments(filter_string="name = 'kappaspeech'")
    (run,) = client.search_runs([experiment.experiment_id])
    assert (run.info.run_name, run.info.status) == (config.arm, "FINISHED")
    assert run.data.params["training.num_steps"] == str(config.training.num_steps)
    found = [
        (name, item.step, item.value) for name in run.data.metrics for item in client.get_metric_history(run.info.run_id, name)
    ]
    assert len(found) == len(shown)
    assert {(name, step): value for name, step, value in found} == pytest.approx(shown)
    assert holds_secret(Path(config.run_dir)) == []
    # a run of which training failed says so
    tell(config, first=8, last=8, resume_step=8, failed=True)
    assert client.get_run(run.info.run_id).info.status == "FAILED"


@pytest.mark.usefixtures("client")
def test_a_server_out_of_reach_is_told_once(tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    tell(make_config(tmp_path, "mlflow"), first=0, last=1, resume_step=0)
    (line,) = said(caplog)
    assert line.startswith("training.loggers: mlflow shows no more of this run (MlflowException: ")
