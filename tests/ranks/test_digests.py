"""The number of times a run hashes what it doesn't train."""

from __future__ import annotations

from tests import tiny

SCRIPT = """
import sys
from pathlib import Path
from kappaspeech.model.encoder import FrozenWhisperEncoder

calls, digests = [], FrozenWhisperEncoder.digests
FrozenWhisperEncoder.digests = lambda encoder: (calls.append(None), digests(encoder))[1]

from kappaspeech.config.run_config import read_run_config
from kappaspeech.training.run import train

train(read_run_config(Path(sys.argv[1])))
print("calls", len(calls))
"""


def test_the_encoder_is_hashed_once_before_a_run_and_once_after(home, nursery, tmp_path):
    """It was five times at a start, with 1.3 GB each."""
    changes = {"training__num_steps": 1, "data__test": [], "data__feature_cache_dir": str(tmp_path / "cache")}
    config = tiny.write_config(tmp_path / "run.yaml", home, tmp_path / "run", **changes)
    done = nursery.run(config, code=SCRIPT)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.splitlines()[-1] == "calls 2"
