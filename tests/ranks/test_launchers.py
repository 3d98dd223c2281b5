"""The same run by every launcher, from a repository, an interpreter and run folders whose paths hold spaces."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from tests import tiny
from tests.conftest import clean_environment, free_port
from tests.patience import patience
from tests.ranks.test_training import BF16_LOSS_TOLERANCE, steps

REPOSITORY = Path(__file__).parents[2]
SCRIPTS = Path(sysconfig.get_path("scripts"))
ARM = 'a "b c" $d; *'


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A repository, and an environment with all that this one has, under a path with spaces."""
    folder = tmp_path_factory.mktemp("with some spaces")
    for part in ("launch", "pipeline"):
        (folder / part).symlink_to(REPOSITORY / part)
    base = getattr(sys, "_base_executable", sys.executable)
    subprocess.run([base, "-m", "venv", "--without-pip", str(folder / "my env")], check=True, timeout=patience(60))
    (packages,) = (folder / "my env/lib").glob("python*/site-packages")
    (packages / "all.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return folder


def start(*words: object, cwd: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run a command with no environment active."""
    clean = clean_environment(OMP_NUM_THREADS="1", **variables)
    clean.pop("PYTHONPATH")
    clean.setdefault("PATH", "")
    return subprocess.run(
        [*map(str, words)], cwd=cwd, env=clean, capture_output=True, text=True, timeout=patience(150), check=False
    )


def command(launcher: str, script: Path, python: Path) -> list[str]:
    """The words that start two ranks of `script`, up to its arguments."""
    mpirun = shutil.which("mpirun", path=os.pathsep.join([str(SCRIPTS), os.environ["PATH"]]))
    if launcher == "mpirun" and mpirun is None:
        pytest.skip("no mpirun: the package `openmpi` has one")
    return {
        "bash": ["bash", str(script)],
        "deepspeed": [str(SCRIPTS / "deepspeed"), "--num_gpus=2", f"--master_port={free_port()}", str(script)],
        "torchrun": [str(python), "-m", "torch.distributed.run", "--nproc-per-node=2", "--standalone", str(script)],
        "mpirun": [str(mpirun), "--allow-run-as-root", "--oversubscribe", "-n", "2", "bash", str(script)],
    }[launcher]


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["bash", "deepspeed", "torchrun", "mpirun"])
def test_every_launcher_trains_the_same_run(home, place, one_rank, tmp_path, launcher):
    run = tmp_path / "my run"
    config = tiny.write_config(tmp_path / "my run.yaml", home, run, training__num_steps=2, data__test=[], data__text={})
    python = place / "my env/bin/python"
    words = [*command(launcher, place / "launch/train.sh", python), "--config", config, "--set", f"arm={ARM}"]
    done = start(*words, cwd=tmp_path, PYTHON=str(python), NUM_RANKS="2", DS_ACCELERATOR="cpu")
    assert done.returncode == 0, done.stderr[-3000:]
    record = json.loads((run / "run.json").read_text())
    assert (record["status"], record["world_size"], record["arm"]) == ("finished", 2, ARM)
    for key in ("step", "keys_digest"):
        assert [step[key] for step in steps(run)] == [step[key] for step in steps(one_rank)[:2]]
    losses = [step["loss_nats"] for step in steps(run)]
    assert losses == pytest.approx([step["loss_nats"] for step in steps(one_rank)[:2]], rel=BF16_LOSS_TOLERANCE)


@pytest.fixture(scope="module")
def ranking(home, run_command, tmp_path_factory) -> bytes:
    """The file that one process writes."""
    path = tmp_path_factory.mktemp("alone") / "ranking.json"
    assert run_command("scan", home / "llm", "--no-journal", "--workers", 1, "--output", path).returncode == 0
    return path.read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["bash", "deepspeed"])
def test_bash_and_deepspeed_scan_to_the_bytes_of_one_process(home, place, ranking, tmp_path, launcher):
    output, python = tmp_path / "my ranking.json", place / "my env/bin/python"
    words = [*command(launcher, place / "launch/kappa_scan.sh", python), home / "llm", "--no-journal", "--output", output]
    done = start(*words, cwd=tmp_path, PYTHON=str(python), DS_ACCELERATOR="cpu")
    assert done.returncode == 0, done.stderr[-3000:]
    assert output.read_bytes() == ranking


@pytest.mark.parametrize("script", ["train.sh", "kappa_scan.sh"])
def test_without_an_environment_the_message_says_what_to_do(place, tmp_path, script):
    done = start("/bin/bash", place / "launch" / script, "--help", cwd=tmp_path, PYTHON="/usr/bin/false")
    assert (done.returncode, done.stdout) == (2, "")
    assert "DeepSpeed isn't installed for /usr/bin/false" in done.stderr


@pytest.mark.parametrize("script", ["train.sh", "kappa_scan.sh"])
def test_a_copy_as_sbatch_makes_finds_the_repository_it_was_submitted_from(place, tmp_path, script):
    copy = shutil.copy(REPOSITORY / "launch" / script, tmp_path / "slurm_script")
    variables = {"PYTHON": str(place / "my env/bin/python"), "RANK": "0", "WORLD_SIZE": "1"}
    lost = start("bash", copy, "--help", cwd=tmp_path, **variables)
    assert (lost.returncode, lost.stdout) == (2, "")
    assert f"{tmp_path} isn't the repository" in lost.stderr
    found = start("bash", copy, "--help", cwd=tmp_path, SLURM_SUBMIT_DIR=str(place), **variables)
    assert found.returncode == 0, found.stderr
    assert "Usage: " in found.stdout
