"""The checks that only a GPU answers, by the command that records them: parity, the scan, and a run killed and resumed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.conftest import clean_environment

REPOSITORY = Path(__file__).parents[2]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU: torch finds no CUDA device on this machine"),
]


@pytest.mark.parametrize("section", ["parity", "scan", "resume"])
def test_what_holds_on_a_cpu_holds_on_a_gpu(section, tmp_path):
    words = ["--sections", section, "--shape", "tiny", "--minutes", "4", "--output", str(tmp_path)]
    done = subprocess.run(
        [sys.executable, str(REPOSITORY / "benchmarks/gpu.py"), *words],
        env=clean_environment(),
        capture_output=True,
        text=True,
        timeout=280,
    )
    record = json.loads((tmp_path / f"{section}.json").read_text())
    assert record["rehearsal"] is None
    assert record["status"] == "ok", done.stdout[-3000:]
