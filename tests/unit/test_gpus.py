"""The number of GPUs that ranks may use; nvidia-smi is a stand-in."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from kappaspeech import gpus
from kappaspeech.errors import TrainingError
from tests.conftest import clean_environment
from tests.patience import patience


def test_a_driver_that_hangs_is_told_and_not_taken_for_a_host_without_gpus(tmp_path, monkeypatch):
    (tmp_path / "nvidia-smi").write_text("#!/bin/sh\nexec sleep 60\n")
    (tmp_path / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    monkeypatch.setattr(gpus, "_DRIVER_SECONDS", 0.2)
    with pytest.raises(TrainingError, match=r"nvidia-smi hasn't answered on .*: the GPUs' driver hangs"):
        gpus.count_gpus()


@pytest.mark.parametrize(
    "visible, driver, count",
    [
        (None, "GPU 0\\nGPU 1\\nGPU 2\\n", 3),
        ("4,6", "GPU 0\\nGPU 1\\nGPU 2\\n", 2),
        ("MIG-7", "GPU 0\\n", 1),
        ("", "GPU 0\\n", 0),
        ("-1", "GPU 0\\n", 0),
        # SLURM's, of a job that asked for none
        ("NoDevFiles", "GPU 0\\n", 0),
        ("0", "No devices found.\\n", 0),
    ],
)
def test_gpus_are_counted_that_may_be_used(tmp_path, monkeypatch, visible, driver, count):
    (tmp_path / "nvidia-smi").write_text(f"#!/bin/sh\nprintf '{driver}'\n")
    (tmp_path / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert gpus.count_gpus() == count


def test_a_driver_that_knows_no_gpu_is_believed_and_one_that_is_missing_replaced_by_device_files(tmp_path, monkeypatch):
    """A job that was given no GPU of its host may see all of their files."""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    monkeypatch.setattr(gpus, "_DEVICES", tmp_path)
    for name in ("nvidia0", "nvidia1", "nvidiactl"):
        (tmp_path / name).touch()
    assert gpus.count_gpus() == 2
    (tmp_path / "nvidia-smi").write_text("#!/bin/sh\necho No devices found.\n")
    (tmp_path / "nvidia-smi").chmod(0o755)
    assert gpus.count_gpus() == 0


@pytest.mark.parametrize("variables, count", [({}, 2), ({"DS_ACCELERATOR": "cpu"}, 0), ({"DS_ACCELERATOR": "cuda"}, 2)])
def test_the_command_prints_the_number_for_a_training(tmp_path, variables, count):
    (tmp_path / "nvidia-smi").write_text("#!/bin/sh\nprintf 'GPU 0\\nGPU 1\\n'\n")
    (tmp_path / "nvidia-smi").chmod(0o755)
    environment = clean_environment(PATH=f"{tmp_path}:/usr/bin:/bin", **variables)
    for name in {"DS_ACCELERATOR", "CUDA_VISIBLE_DEVICES"} - set(variables):
        environment.pop(name, None)
    words = [sys.executable, "-m", "kappaspeech.gpus"]
    done = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=patience(10), check=True)
    assert (done.stdout, done.stderr) == (f"{count}\n", "")
