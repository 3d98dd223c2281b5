"""Installed packages against what setup.py asks for."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from importlib.metadata import PackageNotFoundError, requires

from packaging.requirements import Requirement

from kappaspeech.diagnosis.finding import Finding
from kappaspeech.package_versions import find_version

_NAME = "kappaspeech"


def check_packages() -> list[Finding]:
    """Compare every dependency, extras aside, with its bounds."""
    try:
        wanted = [Requirement(text) for text in requires(_NAME) or ()]
    except PackageNotFoundError:
        remedy = "Install the repository with `pip install -e .`, or run launch/test.sh, which makes an environment."
        return [Finding("versions", "warning", f"{_NAME} itself isn't installed, so its bounds aren't known", remedy)]
    wanted = [item for item in wanted if item.marker is None or item.marker.evaluate({"extra": ""})]
    return compare_versions(wanted, installed_versions(item.name for item in wanted))


def installed_versions(names: Iterable[str]) -> dict[str, str]:
    """Versions of those of `names` that are installed, and of Python."""
    found = {"python": ".".join(map(str, sys.version_info[:3]))}
    return found | {name: have for name in names if (have := find_version(name)) is not None}


def compare_versions(wanted: list[Requirement], installed: Mapping[str, str]) -> list[Finding]:
    """A problem for each package that is missing or out of its bounds; one line for all that are well."""
    findings = []
    for item in wanted:
        have = installed.get(item.name)
        # a local build (2.13.0+cpu) is of its release
        if have is not None and item.specifier.contains(have.partition("+")[0], prereleases=True):
            continue
        found = f"{item.name} {have or 'is not installed'}; wanted is {item.specifier or 'any version'}"
        findings.append(Finding("versions", "problem", found, f"pip install '{item.name}{item.specifier}'"))
    good = len(wanted) - len(findings)
    if good:
        findings.append(Finding("versions", "ok", f"{good} packages within their bounds, Python {installed.get('python')}"))
    return findings
