from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from kappaspeech import shipped
from kappaspeech.shipped import find_shipped
from tests.patience import patience

REPOSITORY = Path(__file__).parents[2]


@pytest.mark.parametrize("name", ["launch/train.sh", "ds_configs/zero3.json"])
def test_a_clones_own_file_is_found(name):
    assert find_shipped(name) == REPOSITORY / name


def test_a_folder_and_what_is_not_there_are_none():
    assert find_shipped("launch") is None
    assert find_shipped("launch/nothing.sh") is None


def test_an_installed_package_has_its_files_within_it(tmp_path, monkeypatch):
    monkeypatch.setattr(shipped, "_PACKAGE", tmp_path / "site-packages/kappaspeech")
    assert find_shipped("launch/train.sh") is None
    path = tmp_path / "site-packages/kappaspeech/shipped/launch/train.sh"
    path.parent.mkdir(parents=True)
    path.touch()
    assert find_shipped("launch/train.sh") == path


def test_the_wheel_gets_the_scripts_that_work_without_a_clone(tmp_path):
    words = [sys.executable, "setup.py", "--quiet", "build_py", "--build-lib", str(tmp_path)]
    done = subprocess.run(words, cwd=REPOSITORY, capture_output=True, text=True, timeout=patience(60))
    assert done.returncode == 0, done.stderr
    there = {path.name for path in (tmp_path / "kappaspeech/shipped").rglob("*") if path.is_file()}
    assert {"train.sh", "kappa_scan.sh", "zero3.json"} <= there
    assert not {"quickstart.sh", "test.sh"} & there
