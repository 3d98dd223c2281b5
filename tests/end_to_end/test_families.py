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
UNLIKE_LLAMA = ("Gemma-2", "GPT-2", "DeepSeek-V3", "Mamba")


# whose partitions differ: words that are the head too, experts of three dimensions, a state in place of attention
PARTITIONED = ("Llama, tied", "Qwen3-MoE", "Mamba")


def try_out(families: tuple[str, ...], folder: Path, *, num_ranks: int) -> dict[str, str]:
    record = folder / "record.json"
    done = subprocess.run(
        [sys.executable, "benchmarks/families.py", *families, "--work", folder, "--record", record, "--ranks", str(num_ranks)],
        cwd=REPOSITORY,
        env=clean_environment(OMP_NUM_THREADS="1"),
        capture_output=True,
        text=True,
        timeout=patience(400 if num_ranks > 1 else 300),
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return {name: row["result"] for name, row in json.loads(record.read_text()).items()}


@pytest.mark.parametrize(("families", "num_ranks"), [(UNLIKE_LLAMA, 1), (PARTITIONED, 2)])
def test_families_unlike_llama_train_resume_and_export_what_was_trained(tmp_path, families, num_ranks):
    assert try_out(families, tmp_path, num_ranks=num_ranks) == dict.fromkeys(families, "works, equal")
