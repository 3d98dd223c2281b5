"""The images: one lock of versions that fits setup.py, installed by one script, run without root.

There is no container engine where the tests run: the files are parsed, not built.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

from tests.patience import patience

REPOSITORY = Path(__file__).parents[2]
IMAGES = REPOSITORY / "launch/images"
INSTRUCTIONS = {"ARG", "FROM", "WORKDIR", "COPY", "RUN", "ENV", "USER", "ENTRYPOINT", "CMD"}
SECTIONS = {"files", "post", "environment", "runscript", "test"}


def lock() -> dict[str, Version]:
    lines = [line for line in (IMAGES / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    pairs = [line.split("==") for line in lines]
    return {name: Version(number) for name, number in pairs}


def setup_requirements() -> list[Requirement]:
    """What setup.py asks for, with the extras that the images install."""
    tree = ast.parse((REPOSITORY / "setup.py").read_text())
    values = {node.targets[0].id: ast.literal_eval(node.value) for node in tree.body if isinstance(node, ast.Assign)}
    (extras,) = re.findall(r'"\.\[(.*)\]"', (IMAGES / "install.sh").read_text())
    lines = [*values["REQUIREMENTS"], *(line for extra in extras.split(",") for line in values["EXTRAS"][extra])]
    return [Requirement(line) for line in lines]


def dockerfile() -> list[tuple[str, str]]:
    text = re.sub(r"\\\n", " ", (IMAGES / "Dockerfile").read_text())
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    return [(line.split()[0], line.split(maxsplit=1)[1]) for line in lines]


def sections() -> dict[str, str]:
    head, *parts = re.split(r"^%", (IMAGES / "kappaspeech.def").read_text(), flags=re.MULTILINE)
    return {"": head, **{part.split("\n", 1)[0].strip(): part.split("\n", 1)[1] for part in parts}}


@pytest.mark.parametrize("requirement", setup_requirements(), ids=str)
def test_every_direct_dependency_is_locked_within_its_bounds(requirement):
    assert lock()[requirement.name.lower().replace("_", "-")] in requirement.specifier


def test_the_script_that_makes_the_lock_finds_every_direct_dependency():
    done = subprocess.run([sys.executable, IMAGES / "lock.py"], capture_output=True, text=True, timeout=patience(60), check=True)
    names = {line.split("==")[0] for line in done.stdout.splitlines()[1:]}
    assert {requirement.name.lower().replace("_", "-") for requirement in setup_requirements()} <= names


def test_the_dockerfile_is_whole_and_ends_without_root():
    instructions = dockerfile()
    assert {name for name, _ in instructions} <= INSTRUCTIONS
    arguments = dict(instructions)
    assert re.fullmatch(r"BASE=nvidia/cuda:\d+\.\d+\.\d+-base-ubuntu\d+\.\d+", arguments["ARG"]), "a version, no moving tag"
    assert arguments["FROM"] == "${BASE}"
    assert [name for name, _ in instructions].index("USER") > max(i for i, (n, _) in enumerate(instructions) if n == "RUN")
    assert arguments["USER"] == "kappaspeech"
    assert f"useradd --create-home --uid 10001 {arguments['USER']}" in [value for name, value in instructions if name == "RUN"]
    for name in ("ENTRYPOINT", "CMD"):
        assert isinstance(ast.literal_eval(arguments[name]), list)


def test_both_images_start_from_the_same_base_and_install_with_the_same_script():
    parts = sections()
    assert set(parts) == {"", *SECTIONS}
    assert (
        f"BASE={dict(line.split(': ') for line in parts[''].splitlines() if ': ' in line[:12])['From']}"
        == dict(dockerfile())["ARG"]
    )
    assert "bash launch/images/install.sh" in parts["post"]
    assert ("RUN", "bash launch/images/install.sh") in dockerfile()
    for line in parts["files"].split("\n"):
        if line.strip():
            assert (REPOSITORY / line.split()[0]).exists()


def test_what_the_docker_build_sees_is_what_apptainer_copies():
    kept = {line[1:] for line in (IMAGES / "Dockerfile.dockerignore").read_text().splitlines() if line.startswith("!")}
    assert kept == {line.split()[0] for line in sections()["files"].splitlines() if line.strip()}


@pytest.mark.parametrize("script", ["install.sh"])
def test_the_scripts_are_bash(script):
    subprocess.run(["bash", "-n", IMAGES / script], check=True, timeout=patience(10))
    for part in ("post", "environment", "runscript", "test"):
        subprocess.run(["sh", "-n"], input=sections()[part], text=True, check=True, timeout=patience(10))
