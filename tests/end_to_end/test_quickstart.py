"""`launch/quickstart.sh` on its real models, with a few recordings and steps; interrupted, and gone on with."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests import tiny
from tests.conftest import clean_environment

REPOSITORY = Path(__file__).parents[2]


def start(output: Path, speech: Path, log: Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        ["bash", str(REPOSITORY / "launch/quickstart.sh"), "--output", str(output), "--speech", str(speech), "--steps", "6"],
        env=clean_environment(VENV=sys.prefix),
        stdout=log.open("ab"),
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_quickstart_goes_on_where_it_was_interrupted(tmp_path):
    if not (Path(sys.prefix) / "pyvenv.cfg").exists():
        pytest.skip("runs in a virtual environment alone: the quickstart would install into this Python")
    speech = tiny.make_recordings(tmp_path / "recordings", num_clips=30)
    output, log = tmp_path / "out", tmp_path / "log"
    process = start(output, speech, log)
    try:
        steps = output / "runs/kappa/steps.jsonl"
        deadline = time.monotonic() + 400
        while not (steps.exists() and len(steps.read_text().splitlines()) >= 2):
            assert process.poll() is None, log.read_text()[-3000:]
            assert time.monotonic() < deadline, log.read_text()[-3000:]
            time.sleep(0.5)
        # as Ctrl-C does: to every process in the foreground
        os.killpg(process.pid, signal.SIGINT)
        assert process.wait(timeout=90) != 0
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    assert "comparing" not in log.read_text()
    process = start(output, speech, log)
    assert process.wait(timeout=400) == 0, log.read_text()[-3000:]
    assert [json.loads(line)["step"] for line in steps.read_text().splitlines()] == list(range(6))
    printed = log.read_text()
    for path in (
        "ranking.json",
        "selection.json",
        "runs/kappa/checkpoints/step-000006/trained.safetensors",
        "comparison/report.html",
    ):
        assert (output / path).exists()
        assert f"  {path}  " in printed
    assert "written: " in printed
