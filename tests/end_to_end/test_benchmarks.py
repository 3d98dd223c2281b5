"""Benchmarks that wait for a GPU, rehearsed without one."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import clean_environment

REPOSITORY = Path(__file__).parents[2]


@pytest.mark.slow
def test_a_model_of_random_weights_is_trained_and_its_utilisation_told():
    done = subprocess.run(
        [sys.executable, str(REPOSITORY / "benchmarks/train.py"), "--shape", "tiny"],
        env=clean_environment(OMP_NUM_THREADS="1"),
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    record = json.loads(done.stdout[done.stdout.index("{") :])
    assert record["command"] == "python benchmarks/train.py --device cpu --shape tiny"
    assert 0 < record["results"]["mfu"] < 1
    assert record["results"]["tokens_per_second"] > 0
    assert 0 < record["results"]["num_trained_parameters"] < record["results"]["num_parameters"]
