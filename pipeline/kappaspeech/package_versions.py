"""Versions of installed packages."""

from __future__ import annotations

from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version

NOT_INSTALLED = "not installed"


def find_version(package: str) -> str | None:
    """The version of a package, by its name in the index; None if it isn't installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def describe_versions(packages: Iterable[str]) -> dict[str, str]:
    """The version of each package, or that it is `NOT_INSTALLED`."""
    return {package: find_version(package) or NOT_INSTALLED for package in packages}
