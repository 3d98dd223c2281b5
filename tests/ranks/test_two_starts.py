"""Two starts in one run folder: the first goes on to its end, whatever the second is and however it fails."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests import tiny
from tests.conftest import clean_environment
from tests.patience import patience
from tests.ranks.test_faults import Training


def read_status(run: Path) -> str:
    return str(json.loads((run / "run.json").read_text())["status"])


def wait_for_steps(run: Path, number: int, has_ended: Callable[[], object]) -> None:
    deadline = time.monotonic() + patience(120)
    while not (run / "steps.jsonl").exists() or (run / "steps.jsonl").read_text().count("\n") < number:
        assert time.monotonic() < deadline
        assert not has_ended()
        time.sleep(0.05)


def fail_beside(run: Path, run_command, config: Path, *words: object, has_ended: Callable[[], object]) -> None:
    """Start a second time, with an error, beside a start that trains; and let that one stop."""
    wait_for_steps(run, 3, has_ended)
    record = (run / "run.json").read_text()
    leftover = run / "checkpoints/.step-000500.tmp"
    leftover.mkdir(parents=True)
    second = run_command("train", config, "--set", "model.encoder=/typo.pt", *words)
    assert second.returncode == 2
    assert "has been trained in for " in second.stderr
    assert "Traceback" not in second.stderr
    assert leftover.exists()
    assert (run / "run.json").read_text() == record
    wait_for_steps(run, (run / "steps.jsonl").read_text().count("\n") + 3, has_ended)
    (run / "STOP").touch()


@pytest.mark.slow
def test_a_start_that_one_rank_refuses_gives_the_folder_back(home, run_command, tmp_path):
    """Rank 0 had taken it by then, and the next start from another host waited half a minute."""
    run = tmp_path / "run"
    config = tiny.write_config(tmp_path / "run.yaml", home, run)
    done = run_command("train", config, ranks=2, sabotage=("lack_a_package", "1"))
    assert (done.returncode, "a package is missing here" in done.stderr) == (2, True), done.stderr[-3000:]
    assert not run.exists()


@pytest.mark.slow
def test_a_failed_second_start_leaves_a_running_one_alone(nursery, home, run_command, tmp_path):
    training = Training(nursery, home, tmp_path, training__num_steps=1000)
    pids = training.start(ranks=1)
    try:
        fail_beside(training.run, run_command, training.config, has_ended=lambda: nursery.wait(pids, timeout_seconds=0) != [None])
        assert (training.wait(pids), training.status) == ([0], "resumable"), training.said
        assert not (training.run / "lease.json").exists()
    finally:
        training.wait(pids, 0)


@pytest.mark.slow
def test_a_failed_second_start_with_a_launcher_leaves_a_running_one_alone(home, run_command, tmp_path):
    run = tmp_path / "run"
    config = tiny.write_config(tmp_path / "run.yaml", home, run, data__test=[], training__num_steps=1000)
    first = subprocess.Popen(
        [sys.executable, "-m", "kappaspeech", "train", str(config), "--nproc", "1"],
        env=clean_environment(OMP_NUM_THREADS="1"),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        fail_beside(run, run_command, config, "--nproc", 1, has_ended=lambda: first.poll() is not None)
        output, _ = first.communicate(timeout=patience(60))
        assert (first.returncode, read_status(run)) == (0, "resumable"), output
        assert not (run / "lease.json").exists()
    finally:
        first.kill()
        first.communicate()


@pytest.mark.slow
def test_a_start_that_is_refused_before_it_began_leaves_a_finished_run_finished(nursery, home, tmp_path):
    training = Training(nursery, home, tmp_path, training__num_steps=2)
    assert training.finish(ranks=1) == [0], training.said
    before = {path: path.read_bytes() for path in training.run.rglob("*") if path.is_file()}
    (training.run / "STOP").touch()
    assert training.finish(ranks=1) == [2]
    assert "was there before this start" in training.said
    (training.run / "STOP").unlink()
    wrong = Training(nursery, home, tmp_path, training__num_steps=2, model__encoder="/typo.pt")
    assert wrong.finish(ranks=1) == [2]
    assert {path: path.read_bytes() for path in training.run.rglob("*") if path.is_file()} == before


@pytest.mark.slow
def test_a_refused_first_start_leaves_no_folder(nursery, home, tmp_path):
    wrong = Training(nursery, home, tmp_path, model__encoder="/typo.pt")
    assert wrong.finish(ranks=2) == [2, 2]
    assert not wrong.run.exists()
