"""Gather the wheels that a host lacks; `launch/offline_wheels.sh gather` is the command, and says what each option means.

From setup.py's requirements on, each package that the host hasn't in a version that fits is fetched, and then what its own
metadata asks for. Nothing is resolved backwards: versions are those of the constraints file, in which the tests have passed.
"""

from __future__ import annotations

import argparse
import os
import runpy
import subprocess
import sys
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from email.parser import Parser
from pathlib import Path
from typing import Any
from unittest.mock import patch

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name, parse_wheel_filename

LAUNCH = Path(__file__).parent
MIB = 1 << 20


@dataclass(frozen=True)
class Host:
    """The machine the wheels are for, and the packages it has: versions by name, "" if any version fits."""

    python: str
    machine: str
    glibc: str
    packages: Mapping[str, str]

    def wants(self, requirement: Requirement) -> bool:
        """True if it applies to that machine."""
        environment = {
            "python_version": self.python,
            "python_full_version": f"{self.python}.0",
            "platform_machine": self.machine,
            "platform_system": "Linux",
            "sys_platform": "linux",
            "os_name": "posix",
            "extra": "",
        }
        return requirement.marker is None or requirement.marker.evaluate(environment)

    def has(self, requirement: Requirement) -> bool:
        version = self.packages.get(canonicalize_name(requirement.name))
        return version == "" or (version is not None and requirement.specifier.contains(version, prereleases=True))

    @property
    def pip_options(self) -> list[str]:
        major, newest = (int(part) for part in self.glibc.split("."))
        platforms = [f"manylinux_{major}_{minor}_{self.machine}" for minor in range(newest, 4, -1)]
        platforms += [f"manylinux{name}_{self.machine}" for name in ("2014", "2010", "1")]
        named = [word for platform in platforms for word in ("--platform", platform)]
        return ["--only-binary=:all:", "--implementation=cp", f"--python-version={self.python}", *named]


def read_requirements() -> list[Requirement]:
    """Requirements of setup.py."""
    with patch("setuptools.setup"):
        return [Requirement(text) for text in runpy.run_path(str(LAUNCH.parent / "setup.py"))["REQUIREMENTS"]]


def read_packages(path: Path) -> dict[str, str]:
    lines = (line.partition("#")[0].strip() for line in path.read_text(encoding="utf-8").splitlines())
    pairs = (line.partition("==") for line in lines if line)
    return {canonicalize_name(name): version.partition("+")[0] for name, _, version in pairs}


def fetch(requirement: Requirement, host: Host, folder: Path) -> Path:
    """The wheel, from the index, or built from its source if the index has none for the host."""
    wanted = f"{requirement.name}{requirement.specifier}"
    before = set(folder.glob("*.whl"))
    versions = ["--constraint", str(LAUNCH / "images/constraints.txt")]
    quiet = ["--quiet", "--disable-pip-version-check", "--no-deps"]
    pip = [sys.executable, "-m", "pip"]
    done = run([*pip, "download", *quiet, *versions, *host.pip_options, "--dest", str(folder), wanted])
    if done.returncode != 0:
        built = run([*pip, "wheel", *quiet, *versions, "--wheel-dir", str(folder), wanted], DS_BUILD_OPS="0")
        if built.returncode != 0:
            raise SystemExit(
                f"error: there is no wheel of {wanted} for the host, and none can be built:\n{done.stderr}{built.stderr}"
            )
    (wheel,) = set(folder.glob("*.whl")) - before
    if done.returncode != 0 and not wheel.name.endswith("-none-any.whl"):
        raise SystemExit(f"error: the index has no wheel of {wanted} for the host, and what is built here runs only here.")
    return wheel


def run(command: list[str], **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, env={**os.environ, **variables}, capture_output=True, text=True, check=False)


def read_metadata(wheel: Path) -> list[Requirement]:
    """Requirements of a wheel, without those of its extras."""
    with zipfile.ZipFile(wheel) as archive:
        name = next(name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        message = Parser().parsestr(archive.read(name).decode())
    return [Requirement(text) for text in message.get_all("Requires-Dist") or []]


def gather(host: Host, folder: Path) -> dict[str, Path]:
    """Wheel by package name. Wheels that lie in the folder already go: two versions of one would stop the installation."""
    for old in folder.glob("*.whl"):
        old.unlink()
    found: dict[str, Path] = {}
    waiting = read_requirements()
    while waiting:
        requirement = waiting.pop(0)
        name = canonicalize_name(requirement.name)
        if not host.wants(requirement) or host.has(requirement):
            continue
        if name in found:
            _, version, *_ = parse_wheel_filename(found[name].name)
            if not requirement.specifier.contains(version, prereleases=True):
                raise SystemExit(f"error: {found[name].name} is gathered, but something else asks for {requirement}.")
            continue
        found[name] = fetch(requirement, host, folder)
        print(f"  {found[name].stat().st_size / MIB:6.2f} MiB  {found[name].name}", flush=True)
        waiting += read_metadata(found[name])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--have", type=Path, default=LAUNCH / "offline_host.txt")
    parser.add_argument("--python", default="3.12")
    parser.add_argument("--machine", default="x86_64")
    parser.add_argument("--glibc", default="2.28")
    parser.add_argument("--limit-mib", type=float, default=60.0)
    options: Any = parser.parse_args()
    host = Host(options.python, options.machine, options.glibc, read_packages(options.have))
    wheels = gather(host, options.folder)
    total = sum(wheel.stat().st_size for wheel in wheels.values()) / MIB
    print(f"{len(wheels)} wheels, {total:.1f} MiB: {options.folder}")
    if total > options.limit_mib:
        raise SystemExit(
            f"error: that is more than {options.limit_mib:g} MiB. Leave out what the host has: --have FILE, --limit-mib."
        )


if __name__ == "__main__":
    main()
