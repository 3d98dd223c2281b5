"""A host without a network, imitated: an environment with what launch/offline_host.txt lists and nothing else of this one."""

from __future__ import annotations

import importlib.metadata
import subprocess
import sys
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.patience import patience

LAUNCH = Path(__file__).parents[1] / "launch"
# an image with Python has these
_TOOLS = ("pip", "setuptools", "wheel")


def listed_packages() -> dict[str, str]:
    """Version by name, "" if any."""
    lines = (line.partition("#")[0].strip() for line in (LAUNCH / "offline_host.txt").read_text(encoding="utf-8").splitlines())
    return {canonicalize_name(name): version for name, _, version in (line.partition("==") for line in lines if line)}


def installed_with(names: list[str]) -> set[str]:
    """These packages and all that they need, as far as they are installed here."""
    found: set[str] = set()
    waiting = list(names)
    while waiting:
        name = canonicalize_name(waiting.pop())
        if name in found:
            continue
        try:
            needed = importlib.metadata.requires(name) or []
        except importlib.metadata.PackageNotFoundError:
            continue
        found.add(name)
        requirements = [Requirement(text) for text in needed]
        waiting += [item.name for item in requirements if item.marker is None or item.marker.evaluate({"extra": ""})]
    return found


def make_host(folder: Path, *, without: set[str]) -> Path:
    """The interpreter of an environment in `folder` with the listed packages but those `without`."""
    packages = folder / "packages"
    packages.mkdir(parents=True)
    for name in installed_with([name for name in (*listed_packages(), *_TOOLS) if name not in without]) - without:
        distribution = importlib.metadata.distribution(name)
        for top in {path.parts[0] for path in distribution.files or []} - {"..", "__pycache__"}:
            if not top.endswith(".pth") and not (packages / top).is_symlink():
                (packages / top).symlink_to(distribution.locate_file(top))
    base = getattr(sys, "_base_executable", sys.executable)
    subprocess.run([base, "-m", "venv", "--without-pip", str(folder / "venv")], check=True, timeout=patience(60))
    (site,) = (folder / "venv/lib").glob("python*/site-packages")
    (site / "packages.pth").write_text(f"{packages}\n", encoding="utf-8")
    return folder / "venv/bin/python"


def index_answers(folder: Path) -> bool:
    """True if there is a package index to gather from."""
    probe = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder), "braceexpand"]
    return subprocess.run(probe, capture_output=True, timeout=patience(70), check=False).returncode == 0


def gather_and_install(python: Path, folder: Path) -> str:
    """Do with launch/offline_wheels.sh what its two machines do; return the PYTHONPATH that it names."""
    script = ["bash", str(LAUNCH / "offline_wheels.sh")]
    version = f"{sys.version_info[0]}.{sys.version_info[1]}"
    subprocess.run([*script, "gather", str(folder / "wheels"), "--python", version], check=True, timeout=patience(200))
    done = subprocess.run(
        [*script, "install", str(folder / "wheels"), str(folder / "site")],
        env={"PATH": "/usr/bin:/bin", "PYTHON": str(python), "PIP_INDEX_URL": "http://127.0.0.1:9/none"},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        timeout=patience(60),
    )
    return done.stdout.strip().removeprefix("export PYTHONPATH=")
