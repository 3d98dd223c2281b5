"""The images: one lock of versions that fits setup.py, installed by one script, run without root.

There is no container engine where the tests run: the files are parsed, not built.
"""

from __future__ import annotations

import ast
import configparser
import importlib
import json
import os
import re
import shlex
import shutil
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
    """Requirements of setup.py, with the extras that the images install."""
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


def values(name: str) -> list[str]:
    return [value for instruction, value in dockerfile() if instruction == name]


def copied() -> dict[str, str]:
    """The files that Apptainer copies: a path of the repository → its place in the image."""
    return dict(line.split() for line in sections()["files"].splitlines() if line.strip())


def environment() -> str:
    """The folder of the programs that install.sh makes."""
    (folder,) = re.findall(r"^python3 -m venv (\S+)$", (IMAGES / "install.sh").read_text(), re.MULTILINE)
    return folder


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> dict[str, str]:
    """The commands that setup.py installs, name → module:function, as it says from nothing but the files that are copied."""
    folder = tmp_path_factory.mktemp("image")
    for path in copied():
        source = REPOSITORY / path
        if source.is_dir():
            shutil.copytree(source, folder / path, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
        else:
            shutil.copy(source, folder / path)
    (folder / "out").mkdir()
    words = [sys.executable, "setup.py", "--quiet", "egg_info", "--egg-base", "out"]
    done = subprocess.run(words, cwd=folder, capture_output=True, text=True, timeout=patience(60))
    assert done.returncode == 0, done.stderr
    told = configparser.ConfigParser()
    told.read(folder / "out/kappaspeech.egg-info/entry_points.txt")
    return dict(told["console_scripts"])


def run_part(name: str, after: str, *words: str, path: str = os.defpath) -> str:
    """Run a section of the definition by sh with `words` as arguments, then `after`; return what that prints."""
    script = ["sh", "-c", f"{sections()[name]}\n{after}", "sh", *words]
    done = subprocess.run(script, env={"PATH": path}, capture_output=True, text=True, timeout=patience(10), check=True)
    return done.stdout


def test_the_dockerfile_starts_from_a_version_and_no_moving_tag():
    assert {name for name, _ in dockerfile()} <= INSTRUCTIONS
    (argument,) = values("ARG")
    assert re.fullmatch(r"BASE=nvidia/cuda:\d+\.\d+\.\d+-base-ubuntu\d+\.\d+", argument)
    assert values("FROM") == ["${BASE}"]


def test_what_runs_in_the_image_is_a_user_that_was_made_and_is_not_root():
    order = [name for name, _ in dockerfile()]
    assert order.count("USER") == 1
    # what is made as root is made before
    assert order.index("USER") > max(place for place, name in enumerate(order) if name in ("RUN", "COPY"))
    (user,) = values("USER")
    (made,) = [shlex.split(line) for line in values("RUN") if line.startswith("useradd")]
    assert made[-1] == user
    assert "--create-home" in made
    assert int(made[made.index("--uid") + 1]) >= 1000
    assert values("WORKDIR")[-1] == f"/home/{user}"


def test_both_images_run_a_command_that_setup_py_installs(installed, tmp_path, capsys):
    (entry,), (words,) = ([json.loads(value) for value in values(name)] for name in ("ENTRYPOINT", "CMD"))
    (name,) = entry
    module, function = installed[name].split(":")
    # a container that is given nothing to do says what there is
    assert getattr(importlib.import_module(module), function)(words) == 0
    assert "train" in capsys.readouterr().out
    stand_in = tmp_path / name
    stand_in.write_text("#!/bin/sh\nprintf '<%s>' \"$@\"\n")
    stand_in.chmod(0o755)
    given = ["train", "two words.yaml", "$HOME"]
    assert run_part("runscript", "", *given, path=f"{tmp_path}:{os.defpath}") == "<train><two words.yaml><$HOME>"


def test_the_path_of_both_images_begins_where_the_script_installs():
    programs = f"{environment()}/bin"
    variables = dict(pair.split("=") for pair in values("ENV")[0].split())
    assert variables.pop("PATH") == f"{programs}:${{PATH}}"
    names = [*variables, "PATH"]
    shown = run_part("environment", "; ".join(f'printf "%s\\n" "${name}"' for name in names), path="/usr/bin:/bin")
    assert shown.splitlines() == [*variables.values(), f"{programs}:/usr/bin:/bin"]
    assert sections()["test"].split()[0] == f"{programs}/kappaspeech"


def test_both_images_start_from_the_same_base_and_install_with_the_same_script():
    parts = sections()
    assert set(parts) == {"", *SECTIONS}
    head = dict(line.split(": ") for line in parts[""].splitlines() if line and not line.startswith("#"))
    assert head == {"Bootstrap": "docker", "From": values("ARG")[0].removeprefix("BASE=")}
    folder, script = (line.strip() for line in parts["post"].strip().splitlines())
    assert script in values("RUN")
    assert folder == f"cd {values('WORKDIR')[0]}"
    assert values("COPY") == [". ."]


def test_what_is_copied_is_there_and_holds_all_that_the_installation_reads():
    assert copied() == {path: f"{values('WORKDIR')[0]}/{path}" for path in copied()}
    for path in copied():
        assert (REPOSITORY / path).exists(), path
    install = (IMAGES / "install.sh").read_text()
    read = re.findall(r"(?<![\w/.-])launch/[\w./-]+", "\n".join([install, sections()["post"], *values("RUN")]))
    assert {"launch/images/install.sh", "launch/images/constraints.txt"} <= set(read)
    for path in read:
        assert (REPOSITORY / path).is_file(), path
        assert path.split("/")[0] in copied()


def test_what_the_docker_build_sees_is_what_apptainer_copies():
    kept = {line[1:] for line in (IMAGES / "Dockerfile.dockerignore").read_text().splitlines() if line.startswith("!")}
    assert kept == set(copied())


@pytest.mark.parametrize("script", ["install.sh"])
def test_the_scripts_are_bash(script):
    subprocess.run(["bash", "-n", IMAGES / script], check=True, timeout=patience(10))
    for part in ("post", "environment", "runscript", "test"):
        subprocess.run(["sh", "-n"], input=sections()[part], text=True, check=True, timeout=patience(10))
