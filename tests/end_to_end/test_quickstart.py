"""`launch/quickstart.sh` on its real models, with a few recordings and steps; interrupted, and gone on with."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from kappaspeech.commands.train import read_settings
from tests import tiny
from tests.conftest import clean_environment
from tests.patience import patience

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
@pytest.mark.timeout(patience(600))
def test_the_quickstart_goes_on_where_it_was_interrupted(tmp_path):
    if not (Path(sys.prefix) / "pyvenv.cfg").exists():
        pytest.skip("runs in a virtual environment alone: the quickstart would install into this Python")
    speech = tiny.make_recordings(tmp_path / "recordings", num_clips=30)
    output, log = tmp_path / "out", tmp_path / "log"
    process = start(output, speech, log)
    try:
        steps = output / "runs/kappa/steps.jsonl"
        deadline = time.monotonic() + patience(400)
        while not (steps.exists() and len(steps.read_text().splitlines()) >= 2):
            assert process.poll() is None, log.read_text()[-3000:]
            assert time.monotonic() < deadline, log.read_text()[-3000:]
            time.sleep(0.5)
        # as Ctrl-C does: to every process in the foreground
        os.killpg(process.pid, signal.SIGINT)
        assert process.wait(timeout=patience(90)) != 0
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    assert "comparing" not in log.read_text()
    process = start(output, speech, log)
    assert process.wait(timeout=patience(400)) == 0, log.read_text()[-3000:]
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
    # other libraries' bars, and DeepSpeed's lament about GPUs
    assert "it/s]" not in printed
    assert "Setting accelerator" not in printed


def run_bash(*words: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", *words], env=clean_environment(**variables), capture_output=True, text=True, timeout=patience(120)
    )


def write_script(path: Path, body: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/usr/bin/env bash\n{body}")
    path.chmod(0o755)


def make_stand_in(venv: Path, *, step_seconds: float) -> None:
    """An environment whose commands do nothing but what the script looks for; a run's steps take `step_seconds`."""
    installed = subprocess.run(["cksum"], stdin=(REPOSITORY / "setup.py").open("rb"), capture_output=True, text=True, check=True)
    venv.mkdir(exist_ok=True)
    (venv / ".installed").write_text(f"{installed.stdout.strip()} demo\n")
    write_script(
        venv / "bin/python",
        f"""
        case "$*" in
          *socket*) echo 29500 ;;
          "-m kappaspeech.processors"*) echo 1 ;;
          "-m kappaspeech.gpus") echo 0 ;;
        esac
        case "$*" in *run_dir=*) ;; *) exit 0 ;; esac
        echo "$*" >> "{venv}/trainings"
        run=$(grep -o 'run_dir=[^ ]*' <<< "$*" | cut -d = -f 2)
        mkdir -p "$run"
        echo '{{"status": "finished"}}' > "$run/run.json"
        for objective in alignment transcript; do
          record='{{"step": 1, "loss_nats": 1.0, "seconds": {step_seconds}, "objective": "'$objective'"}}'
          for repeat in 1 2 3 4; do echo "$record" >> "$run/steps.jsonl"; done
        done
        """,
    )
    write_script(
        venv / "bin/kappaspeech",
        f"""
        echo "$*" >> "{venv}/commands"
        case "$1 $2" in
          "demo steps") PYTHONPATH="{REPOSITORY}/pipeline" exec "{sys.executable}" -m kappaspeech "$@" ;;
          "demo speech") mkdir -p speech/test/en; printf 'a.flac\\tword\\n' > speech/test/en/transcripts.tsv ;;
        esac
        """,
    )


def read_trainings(venv: Path) -> list[tuple[str, int]]:
    """The run folder and the number of steps of each training that was started; the last of a key counts."""
    lines = (venv / "trainings").read_text().splitlines()
    return [(re.findall(r"run_dir=(\S+)", line)[-1], int(re.findall(r"num_steps=(\d+)", line)[-1])) for line in lines]


def test_minutes_give_a_number_of_steps_that_the_same_command_keeps(tmp_path):
    venv, output = tmp_path / "venv", tmp_path / "out"
    script = (str(REPOSITORY / "launch/quickstart.sh"), "--output", str(output), "--minutes", "1")
    make_stand_in(venv, step_seconds=0.25)
    first = run_bash(*script, VENV=str(venv))
    assert first.returncode == 0, first.stderr
    (probe, num_probe_steps), (run, num_steps) = read_trainings(venv)
    assert (probe, num_probe_steps, run) == ("runs/probe", 16, "runs/kappa")
    assert "data.test=[]" in (venv / "trainings").read_text().splitlines()[0]
    assert 75 < num_steps < 150
    assert f"{num_steps} of the recipe's" in first.stdout
    assert not (output / "runs/probe").exists()

    make_stand_in(venv, step_seconds=0.1)
    second = run_bash(*script, VENV=str(venv))
    assert second.returncode == 0, second.stderr
    assert read_trainings(venv)[2:] == [("runs/kappa", num_steps)]


def test_controls_train_beside_the_smallest_condition_numbers_and_are_compared_with_them(tmp_path):
    venv, output = tmp_path / "venv", tmp_path / "out"
    make_stand_in(venv, step_seconds=0.25)
    done = run_bash(
        str(REPOSITORY / "launch/quickstart.sh"), "--output", str(output), "--steps", "6", "--inverse", "--held", VENV=str(venv)
    )
    assert done.returncode == 0, done.stderr
    assert [run for run, _ in read_trainings(venv)] == ["runs/kappa", "runs/inverse", "runs/held"]
    assert "compare runs/kappa runs/inverse runs/held --output comparison" in (venv / "commands").read_text()
    recipe = REPOSITORY / "launch/configs/quickstart.yaml"
    kappa, inverse, held = (
        read_settings(recipe, None, re.findall(r"--set (.+?)(?= --set |$)", line))
        for line in (venv / "trainings").read_text().splitlines()
    )
    assert (kappa.replay, inverse.replay) == (None, None)
    assert (held.replay.anchor_weight, held.replay.weight, set(held.replay.texts)) == (1, 0, {"en", "de"})
    assert kappa.unfreeze == held.unfreeze
    assert inverse.unfreeze.selection == "selection-inverse.json"
    assert len({config.arm for config in (kappa, inverse, held)}) == 3


def test_minutes_that_hold_no_training_are_refused(tmp_path):
    make_stand_in(tmp_path / "venv", step_seconds=30)
    script = (str(REPOSITORY / "launch/quickstart.sh"), "--output", str(tmp_path / "out"), "--minutes", "2")
    done = run_bash(*script, VENV=str(tmp_path / "venv"))
    assert done.returncode == 2
    assert "error: 2 minutes are too short here" in done.stderr
    assert [run for run, _ in read_trainings(tmp_path / "venv")] == ["runs/probe"]
    assert not (tmp_path / "out/runs/probe").exists()


def test_steps_and_minutes_exclude_each_other_before_anything_is_made(tmp_path):
    script = (str(REPOSITORY / "launch/quickstart.sh"), "--output", str(tmp_path / "out"))
    for words, said in (
        (("--steps", "5", "--minutes", "5"), "--steps and --minutes exclude each other"),
        (("--minutes", "soon"), "--minutes is 'soon'"),
        (("--minutes", "0"), "--minutes is '0'"),
    ):
        done = run_bash(*script, *words, VENV=str(tmp_path / "venv"))
        assert done.returncode == 2
        assert said in done.stderr
        assert done.stdout == ""
    assert not list(tmp_path.iterdir())


def test_a_failed_installation_says_how_long_all_takes_then_the_end_of_its_log_and_a_remedy(tmp_path):
    venv = tmp_path / "venv"
    write_script(
        venv / "bin/python", 'for line in $(seq 40); do echo "WARNING $line"; done; echo "ERROR: no such thing" >&2; exit 7'
    )
    done = run_bash(str(REPOSITORY / "launch/quickstart.sh"), "--output", str(tmp_path / "out"), VENV=str(venv))
    assert done.returncode == 7
    assert "Minutes: " in done.stdout[: done.stdout.index("[1] installing")]
    assert "WARNING" not in done.stdout
    assert "ERROR: no such thing" in done.stderr
    assert f"{venv}/install.log" in done.stderr
    assert "WARNING 5\n" not in done.stderr
    assert "WARNING 5\n" in (venv / "install.log").read_text()
    assert not (venv / ".installed").exists()
