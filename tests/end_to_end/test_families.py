"""Families whose stages once failed, each in a way of its own, from scan to export; `benchmarks/families.py` tries all."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import clean_environment
from tests.patience import patience

pytestmark = pytest.mark.slow

REPOSITORY = Path(__file__).parents[2]
# eager attention with a soft cap; layers of another name; a router in float32 and names that differ; no attention at all
FAMILIES = ("Gemma-2", "GPT-2", "DeepSeek-V3", "Mamba")


def test_families_unlike_llama_train_resume_and_export_what_was_trained(tmp_path):
    record = tmp_path / "record.json"
    done = subprocess.run(
        [sys.executable, "benchmarks/families.py", *FAMILIES, "--work", tmp_path / "work", "--record", record],
        cwd=REPOSITORY,
        env=clean_environment(OMP_NUM_THREADS="1"),
        capture_output=True,
        text=True,
        timeout=patience(300),
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(record.read_text())
    assert {name: found[name]["result"] for name in FAMILIES} == dict.fromkeys(FAMILIES, "works, equal")
