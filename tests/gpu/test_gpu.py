"""The checks that only a GPU answers, by the command that records them: parity, the scan, and a run killed and resumed."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import gpu_environment

REPOSITORY = Path(__file__).parents[2]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("nvidia-smi") is None, reason="no GPU: this machine has no driver of one"),
]


@pytest.fixture(scope="module", autouse=True)
def gpu() -> None:
    """In a process of its own, as this one sees none."""
    words = [sys.executable, "-c", "import sys, torch; sys.exit(not torch.cuda.is_available())"]
    if subprocess.run(words, env=gpu_environment(), timeout=120, check=False).returncode:
        pytest.skip("no GPU: torch finds no CUDA device on this machine")


@pytest.mark.parametrize("section", ["parity", "scan", "resume"])
def test_what_holds_on_a_cpu_holds_on_a_gpu(section, tmp_path):
    words = ["--sections", section, "--shape", "tiny", "--minutes", "4", "--output", str(tmp_path)]
    done = subprocess.run(
        [sys.executable, str(REPOSITORY / "benchmarks/gpu.py"), *words],
        env=gpu_environment(),
        capture_output=True,
        text=True,
        timeout=280,
    )
    record = json.loads((tmp_path / f"{section}.json").read_text())
    assert record["rehearsal"] is None
    assert record["status"] == "ok", done.stdout[-3000:]
