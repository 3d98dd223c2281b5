"""The wheel, built from the source archive, in an environment of its own and a folder without a clone."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import pytest

from tests import tiny
from tests.conftest import clean_environment
from tests.patience import patience

REPOSITORY = Path(__file__).parents[2]
pytestmark = pytest.mark.slow


def tracked(folder: str) -> set[str]:
    """The files of the repository below a folder, those that are still to be committed too."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", folder]
    return set(subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True).stdout.splitlines())


@pytest.fixture(scope="module")
def archives(tmp_path_factory) -> tuple[Path, Path]:
    """The source archive and the wheel, as `python -m build` makes them of the tracked files."""
    folder = tmp_path_factory.mktemp("archives")
    source = folder / "source"
    for name in tracked("."):
        if name.startswith(("pipeline/", "launch/", "ds_configs/")) or "/" not in name:
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(REPOSITORY / name, source / name)
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder / "dist"), str(source)]
    subprocess.run(command, check=True, timeout=patience(120), capture_output=True)
    (archive,), (wheel,) = (folder / "dist").glob("*.tar.gz"), (folder / "dist").glob("*.whl")
    return archive, wheel


@pytest.fixture(scope="module")
def environment(archives, tmp_path_factory) -> dict[str, str]:
    """Variables of an environment with the wheel, and all that this one has but the clone."""
    venv = tmp_path_factory.mktemp("clean") / "venv"
    base = getattr(sys, "_base_executable", sys.executable)
    subprocess.run([base, "-m", "venv", "--without-pip", str(venv)], check=True, timeout=patience(60))
    (packages,) = (venv / "lib").glob("python*/site-packages")
    # a folder named in a .pth file has no .pth files of its own, so the editable clone isn't found
    (packages / "others.pth").write_text(sysconfig.get_path("purelib") + "\n", encoding="utf-8")
    python = str(venv / "bin/python")
    install = [sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-index", "--no-deps", str(archives[1])]
    subprocess.run(install, check=True, timeout=patience(60))
    for script in ("deepspeed", "ds_report"):
        text = Path(sysconfig.get_path("scripts"), script).read_text(encoding="utf-8")
        (venv / "bin" / script).write_text(f"#!{python}\n{text.partition(chr(10))[2]}", encoding="utf-8")
        (venv / "bin" / script).chmod(0o755)
    variables = clean_environment(
        PATH=f"{venv / 'bin'}{os.pathsep}{os.environ['PATH']}", OMP_NUM_THREADS="1", DS_ACCELERATOR="cpu"
    )
    del variables["PYTHONPATH"]
    return variables


@pytest.fixture
def run(environment, tmp_path):
    def start(*words: object) -> str:
        done = subprocess.run(
            [*map(str, words)], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=patience(150), check=False
        )
        assert done.returncode == 0, done.stderr[-3000:]
        return done.stdout

    return start


def test_the_archives_hold_what_the_commands_need_and_nothing_else(archives):
    archive, wheel = archives
    inside = set(zipfile.ZipFile(wheel).namelist())
    modules = {str(path.relative_to(REPOSITORY / "pipeline")) for path in (REPOSITORY / "pipeline/kappaspeech").rglob("*.py")}
    assert modules <= inside
    assert {f"kappaspeech/shipped/ds_configs/{path.name}" for path in (REPOSITORY / "ds_configs").iterdir()} <= inside
    assert {"kappaspeech/shipped/launch/train.sh", "kappaspeech/shipped/launch/slurm/job.sh"} <= inside
    others = tracked("pipeline/kappaspeech") - {f"pipeline/{name}" for name in modules}
    assert len(others) > 5
    assert {name.removeprefix("pipeline/") for name in others} <= inside
    assert {name.partition("/")[0] for name in inside if ".dist-info/" not in name} == {"kappaspeech"}
    with tarfile.open(archive) as source:
        assert any(name.endswith("/launch/train.sh") for name in source.getnames())


def test_a_clean_environment_finds_the_wheel_alone(run):
    assert run("kappaspeech", "--version").startswith("kappaspeech 0.1.0")
    place = run("python", "-c", "import kappaspeech; print(kappaspeech.__file__)")
    assert str(REPOSITORY) not in place


def test_the_installed_package_scans_selects_and_trains_on_two_ranks(run, home, tmp_path):
    run("kappaspeech", "scan", home / "llm", "--output", "ranking.json", "--no-journal")
    run("kappaspeech", "select", "ranking.json", "--count", "4", "--output", "selection.json")
    changes = {"unfreeze__selection": "selection.json", "deepspeed": "ds_configs/zero3_cpu.json"}
    config = tiny.write_config(tmp_path / "run.yaml", home, tmp_path / "run", **changes)
    run("kappaspeech", "train", config, "--nproc", "2")
    assert json.loads((tmp_path / "run/run.json").read_text(encoding="utf-8"))["status"] == "finished"
