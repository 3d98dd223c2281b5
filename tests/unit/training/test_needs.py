"""Packages that a training needs by its configuration."""

from __future__ import annotations

import sys
from importlib.machinery import ModuleSpec
from types import ModuleType

import pytest

from kappaspeech.config.run_config import read_run_config
from kappaspeech.errors import InputError
from kappaspeech.training.needs import check_packages
from tests import tiny


def test_only_what_a_configuration_uses_is_asked_for(tmp_path, monkeypatch):
    for module in ("peft", "jiwer", "s3fs"):
        monkeypatch.setitem(sys.modules, module, None)
    path = tiny.write_config(tmp_path / "run.yaml", tmp_path, tmp_path / "run", data__test=[])
    check_packages(read_run_config(path))
    remote = [{"shards": "s3://bucket/{0..9}.tar"}]
    for changes, word in (
        ({"data.test": remote}, "data.test needs jiwer"),
        ({"unfreeze.mode": "lora"}, "unfreeze.mode lora needs peft"),
        ({"data.train": remote}, "Reading s3:// needs s3fs"),
    ):
        with pytest.raises(InputError, match=word):
            check_packages(read_run_config(path, overrides=changes))


def test_a_logger_needs_its_package_and_no_other(tmp_path, monkeypatch):
    for module in ("tensorboard", "wandb", "trackio", "mlflow"):
        monkeypatch.setitem(sys.modules, module, None)
    path = tiny.write_config(tmp_path / "run.yaml", tmp_path, tmp_path / "run", data__test=[], training__loggers=[])
    check_packages(read_run_config(path))
    for name in ("wandb", "trackio", "mlflow"):
        message = rf"training.loggers: {name} needs {name}, which isn't installed: pip install 'kappaspeech\[{name}\]'\."
        with pytest.raises(InputError, match=message):
            check_packages(read_run_config(path, overrides={"training.loggers": [name]}))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setitem(sys.modules, "mlflow", ModuleType("mlflow"))
    sys.modules["mlflow"].__spec__ = ModuleSpec("mlflow", None)
    for module in ("sqlalchemy", "alembic"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(InputError, match=r"without MLFLOW_TRACKING_URI needs sqlalchemy and alembic, which aren't installed"):
        check_packages(read_run_config(path, overrides={"training.loggers": ["mlflow"]}))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    check_packages(read_run_config(path, overrides={"training.loggers": ["mlflow"]}))
