"""The package's name is its own: what a user has called `pipeline` is none of its business."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.patience import patience

SOURCE = Path(__file__).parents[2] / "pipeline"


@pytest.fixture
def strangers_folder(tmp_path: Path) -> Path:
    (tmp_path / "pipeline.py").write_text('raise SystemExit("this is another pipeline")\n')
    return tmp_path


@pytest.mark.parametrize(
    "words", [["-m", "kappaspeech"], [str(SOURCE)], ["-c", "import kappaspeech; print('usage', file=__import__('sys').stderr)"]]
)
def test_a_users_own_pipeline_breaks_nothing(words, strangers_folder):
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(strangers_folder), str(SOURCE)])}
    done = subprocess.run(
        [sys.executable, *words, "--help"],
        cwd=strangers_folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=patience(60),
    )
    assert done.returncode == 0, done.stderr
    assert "usage" in (done.stdout + done.stderr).lower()
