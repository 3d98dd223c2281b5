"""The workflows that GitHub would run: the commands that exist here, on the Pythons that setup.py allows."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

REPOSITORY = Path(__file__).parents[2]
WORKFLOWS = sorted((REPOSITORY / ".github/workflows").glob("*.yml"))


def read(path: Path) -> dict[str, Any]:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def test_each_python_that_is_allowed_is_tested():
    lowest, beyond = re.search(r'python_requires=">=3\.(\d+),<3\.(\d+)"', (REPOSITORY / "setup.py").read_text()).groups()
    (path,) = (path for path in WORKFLOWS if path.stem == "test")
    assert read(path)["jobs"]["test"]["strategy"]["matrix"]["python"] == [f"3.{n}" for n in range(int(lowest), int(beyond))]


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_a_workflow_starts_scripts_and_extras_that_exist_and_writes_nothing_by_default(path):
    workflow = read(path)
    assert workflow["permissions"] == {"contents": "read"}
    lines = [step["run"] for job in workflow["jobs"].values() for step in job["steps"] if "run" in step]
    assert lines
    for script in re.findall(r"bash (\S+)", "\n".join(lines)):
        assert (REPOSITORY / script).is_file()
    for extra in re.findall(r"\.\[(\w+)\]", "\n".join(lines)):
        assert f'"{extra}": [' in (REPOSITORY / "setup.py").read_text()
