"""The package's name is its own: what a user has called `pipeline` is none of its business."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from tests.patience import patience

SOURCE = Path(__file__).parents[2] / "pipeline"


@pytest.fixture
def strangers_folder(tmp_path: Path) -> Path:
    (tmp_path / "pipeline.py").write_text('raise SystemExit("this is another pipeline")\n')
    return tmp_path


@pytest.fixture(scope="module")
def python_without_the_package(tmp_path_factory) -> str:
    """An interpreter that has all packages of this one but the clone."""
    venv = tmp_path_factory.mktemp("bare") / "venv"
    base = getattr(sys, "_base_executable", sys.executable)
    subprocess.run([base, "-m", "venv", "--without-pip", str(venv)], check=True, timeout=patience(60))
    (packages,) = (venv / "lib").glob("python*/site-packages")
    # a folder named in a .pth file has no .pth files of its own, so the editable clone isn't found
    (packages / "others.pth").write_text(sysconfig.get_path("purelib") + "\n", encoding="utf-8")
    return str(venv / "bin/python")


def run(folder: Path, command: list[str], *, paths: tuple[Path, ...] = ()) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    if paths:
        environment["PYTHONPATH"] = os.pathsep.join(map(str, paths))
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=patience(60), check=False)


@pytest.mark.parametrize(
    "words", [["-m", "kappaspeech"], ["-c", "import kappaspeech; print('usage', file=__import__('sys').stderr)"]]
)
def test_a_users_own_pipeline_breaks_nothing(words, strangers_folder):
    done = run(strangers_folder, [sys.executable, *words, "--help"], paths=(strangers_folder, SOURCE))
    assert done.returncode == 0, done.stderr
    assert "usage" in (done.stdout + done.stderr).lower()


def test_the_folder_of_a_clone_runs_where_nothing_is_installed_and_so_do_the_processes_it_starts(
    python_without_the_package, strangers_folder
):
    assert run(strangers_folder, [python_without_the_package, "-c", "import kappaspeech"]).returncode != 0
    save_file({"a.weight": np.eye(4, dtype=np.float32)}, strangers_folder / "model.safetensors")
    folder = os.path.relpath(SOURCE, strangers_folder)
    scan = ["scan", "model.safetensors", "--workers", "2", "--output", "ranking.json", "--no-journal"]
    done = run(strangers_folder, [python_without_the_package, folder, *scan], paths=(strangers_folder,))
    assert done.returncode == 0, done.stderr
    assert (strangers_folder / "ranking.json").exists()
