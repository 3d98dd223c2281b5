"""Debian packages that tests need beside Python's: daemons and tools that no index of wheels has."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from tests.patience import patience

_POLICY = Path("/usr/sbin/policy-rc.d")


def install(packages: Sequence[str]) -> str | None:
    """Install `packages` without starting their services; return why that can't be done, None if it is."""
    wanted = ", ".join(packages)
    if os.geteuid() != 0:
        return f"{wanted} must be installed, which needs root"
    if shutil.which("apt-get") is None:
        return f"{wanted} must be installed, and there is no apt-get"
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    made = not _POLICY.exists()
    if made:
        _POLICY.write_text("#!/bin/sh\nexit 101\n")
        _POLICY.chmod(0o755)
    try:
        for words in (["update"], ["install", "-y", "--no-install-recommends", *packages]):
            done = subprocess.run(
                ["apt-get", "-q", "-o", "DPkg::Lock::Timeout=60", *words],
                env=environment,
                capture_output=True,
                text=True,
                timeout=patience(240),
                check=False,
            )
        return f"{wanted} can't be installed: {done.stderr.strip()[-300:]}" if done.returncode else None
    except subprocess.TimeoutExpired:
        return f"{wanted} can't be installed: apt-get took too long"
    finally:
        if made:
            _POLICY.unlink()
