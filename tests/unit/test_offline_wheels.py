"""launch/offline_wheels.*: what a host lacks follows from setup.py and a list of what it has."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from tests.offline_host import index_answers
from tests.patience import patience

LAUNCH = Path(__file__).parents[2] / "launch"


@pytest.fixture(scope="module")
def offline_wheels():
    spec = importlib.util.spec_from_file_location("offline_wheels", LAUNCH / "offline_wheels.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["offline_wheels"] = module
    spec.loader.exec_module(module)
    return module


def test_a_host_lacks_what_it_has_too_old_and_what_it_has_not(offline_wheels):
    host = offline_wheels.Host("3.12", "x86_64", "2.28", offline_wheels.read_packages(LAUNCH / "offline_host.txt"))
    lacking = {item.name for item in offline_wheels.read_requirements() if not host.has(item)}
    # of transformers it has an older one
    assert lacking == {
        "deepspeed",
        "transformers",
        "openai-whisper",
        "webdataset",
        "jiwer",
        "pydantic",
        "soundfile",
        "soxr",
        "gguf",
    }


def test_markers_are_those_of_the_host_and_not_of_this_machine(offline_wheels):
    host = offline_wheels.Host("3.12", "aarch64", "2.28", {"numpy": "2.5.2", "torch": ""})
    assert not host.wants(Requirement("triton>=2; platform_machine == 'x86_64'"))
    assert not host.wants(Requirement("tomli; python_version < '3.11'"))
    assert not host.wants(Requirement("pytest; extra == 'test'"))
    assert host.has(Requirement("NumPy>=1.26,<3"))
    assert not host.has(Requirement("numpy>=3"))
    assert host.has(Requirement("torch>=99"))


@pytest.mark.slow
def test_gathered_wheels_are_installed_without_an_index(offline_wheels, tmp_path):
    """Of a host that has all but one package, which needs another."""
    if not index_answers(tmp_path / "probe"):
        pytest.skip("no package index answers here")
    have = [item.name for item in offline_wheels.read_requirements() if item.name != "webdataset"]
    (tmp_path / "have.txt").write_text("\n".join(have), encoding="utf-8")
    script = ["bash", str(LAUNCH / "offline_wheels.sh")]
    wheels, target = tmp_path / "wheels", tmp_path / "site"
    version = f"{sys.version_info[0]}.{sys.version_info[1]}"
    gathered = subprocess.run(
        [*script, "gather", str(wheels), "--have", str(tmp_path / "have.txt"), "--python", version],
        capture_output=True,
        text=True,
        timeout=patience(200),
    )
    assert gathered.returncode == 0, gathered.stdout + gathered.stderr
    assert sorted(path.name.partition("-")[0] for path in wheels.iterdir()) == ["braceexpand", "webdataset"]
    installed = subprocess.run(
        [*script, "install", str(wheels), str(target)],
        env={"PATH": "/usr/bin:/bin", "PYTHON": sys.executable, "PIP_INDEX_URL": "http://127.0.0.1:9/none"},
        capture_output=True,
        text=True,
        timeout=patience(60),
    )
    assert installed.returncode == 0, installed.stderr
    assert installed.stdout == f"export PYTHONPATH={target}:{LAUNCH.parent}/pipeline\n"
    assert (target / "webdataset/__init__.py").exists()
    assert (target / "braceexpand").exists()
