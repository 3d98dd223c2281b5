"""Packages that a training needs by its configuration."""

from __future__ import annotations

import sys

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
