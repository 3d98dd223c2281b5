"""MLflow: a tracking server, or files in the run folder."""

from __future__ import annotations

import logging
import os
import time
from typing import Any

from kappaspeech.escaping import make_logger
from kappaspeech.loggers.logger import Point, RunToShow

_EXPERIMENT = "kappaspeech"
# by it a later start finds the run again
_ID_TAG = "kappaspeech.run_id"
_MOST_PARAMETERS, _MOST_LETTERS = 100, 500


class MlflowLogger:
    """Writes where MLFLOW_TRACKING_URI says, else into the run folder. MLflow's own names for run and experiment count too."""

    def __init__(self, run: RunToShow) -> None:
        # it reads this as it is loaded, and would tell its makers of each use
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        from mlflow import MlflowClient
        from mlflow.entities import Metric, Param

        if "MLFLOW_LOGGING_LEVEL" not in os.environ:
            # it would tell of each table that it makes
            make_logger("mlflow").setLevel(logging.WARNING)
        self._metric = Metric
        self._client = MlflowClient(os.environ.get("MLFLOW_TRACKING_URI") or _own_store(run))
        experiment = self._find_experiment(os.environ.get("MLFLOW_EXPERIMENT_NAME") or _EXPERIMENT)
        found = self._client.search_runs([experiment], f"tags.`{_ID_TAG}` = '{run.run_id}'", max_results=1)
        if found:
            self.run_id = found[0].info.run_id
            self._client.update_run(self.run_id, status="RUNNING")
            return
        self.run_id = self._client.create_run(experiment, run_name=run.name, tags={_ID_TAG: run.run_id}).info.run_id
        parameters = [Param(key, value[:_MOST_LETTERS]) for key, value in flatten(run.config).items()]
        for first in range(0, len(parameters), _MOST_PARAMETERS):
            self._client.log_batch(self.run_id, params=parameters[first : first + _MOST_PARAMETERS])

    def _find_experiment(self, name: str) -> str:
        found = self._client.get_experiment_by_name(name)
        return str(found.experiment_id if found is not None else self._client.create_experiment(name))

    def add(self, point: Point) -> None:
        now = int(time.time() * 1000)
        self._client.log_batch(
            self.run_id, metrics=[self._metric(name, value, now, point.step) for name, value in point.values.items()]
        )

    def flush(self) -> None:
        pass

    def close(self, *, failed: bool) -> None:
        self._client.set_terminated(self.run_id, "FAILED" if failed else "FINISHED")


def _own_store(run: RunToShow) -> str:
    run.folder.mkdir(parents=True, exist_ok=True)
    return f"sqlite:///{run.folder.absolute()}/mlflow.db"


def flatten(config: Any, place: str = "") -> dict[str, str]:
    """A configuration's values as text, by their dotted keys."""
    if isinstance(config, dict | list) and config:
        items = config.items() if isinstance(config, dict) else enumerate(config)
        return {
            key: value
            for name, inner in items
            for key, value in flatten(inner, f"{place}.{name}" if place else str(name)).items()
        }
    return {place: str(config)}
