"""`kappaspeech train --nproc`: what it prints, what it starts, and what it does when a rank dies."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from kappaspeech.launching import leftovers
from tests import tiny
from tests.conftest import clean_environment
from tests.patience import patience
from tests.ranks.test_training import assert_same_steps, steps


@pytest.fixture
def config(home, tmp_path):
    return tiny.write_config(tmp_path / "run.yaml", home, tmp_path / "run", training__checkpoint_every_steps=1)


def start(*words: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "kappaspeech", "train", *map(str, words)],
        env=clean_environment(OMP_NUM_THREADS="1"),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def test_a_dry_run_prints_the_line_and_starts_nothing(config, run_command, tmp_path):
    done = run_command("train", config, "--nproc", 2, "--set", "arm=largest κ", "--dry-run")
    assert done.returncode == 0, done.stderr
    assert "deepspeed -q --num_gpus 2 --master_port" in done.stdout
    assert f"launch/train.sh {config} --set 'arm=largest κ'" in done.stdout
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--nproc", 1, "--slurm", ""), "Give one of"),
        (("--max-restarts", 1), "need --nproc"),
        (("--slurm", "", "--max-restarts", 1), "requeues itself"),
        (("--hostfile", "nowhere"), "can't be read"),
    ],
)
def test_options_that_make_no_sense_are_refused(config, run_command, words, message):
    done = run_command("train", config, *words)
    assert (done.returncode, message in done.stderr) == (2, True), done.stderr


@pytest.mark.slow
def test_a_killed_rank_ends_a_start_and_the_next_one_goes_on_to_the_same_losses(config, one_rank, tmp_path):
    """The whole of it: two ranks, one killed within the run, a restart from the last checkpoint."""
    run = tmp_path / "run"
    process = start(config, "--nproc", 2, "--max-restarts", 1)
    try:
        mark = wait_for_a_step(process, run)
        os.kill(find_rank(mark, 1), signal.SIGKILL)
        output, _ = process.communicate(timeout=patience(150))
    finally:
        process.kill()
    assert process.returncode == 0, output
    assert "restart 1 of 1" in output
    assert json.loads((run / "run.json").read_text())["status"] == "finished"
    assert len(list((run / "launch").iterdir())) == 2
    assert_same_steps(run, one_rank)
    assert len(steps(run)) == 4


@pytest.mark.slow
def test_ranks_end_with_a_supervisor_that_is_killed(config, tmp_path):
    run = tmp_path / "run"
    process = start(config, "--nproc", 2, "--set", "training.num_steps=10000")
    try:
        mark = wait_for_a_step(process, run)
        assert len(leftovers.find(mark)) >= 3
    finally:
        process.kill()
    process.wait()
    deadline = time.monotonic() + patience(20)
    while leftovers.find(mark):
        assert time.monotonic() < deadline
        time.sleep(0.1)


def wait_for_a_step(process: subprocess.Popen[str], run: Path) -> str:
    """The mark of the start whose ranks have taken a step."""
    deadline = time.monotonic() + patience(120)
    while not (run / "steps.jsonl").exists():
        assert time.monotonic() < deadline
        assert process.poll() is None, process.stdout and process.stdout.read()
        time.sleep(0.02)
    (mark,) = [path.name for path in (run / "launch").iterdir()]
    return mark


def find_rank(mark: str, rank: int) -> int:
    """The process id of a rank of the start `mark`."""
    for pid in leftovers.find(mark):
        variables = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        if f"RANK={rank}".encode() in variables and b"torch" not in Path(f"/proc/{pid}/cmdline").read_bytes():
            return pid
    raise AssertionError(f"no rank {rank} among the processes of {mark}")
