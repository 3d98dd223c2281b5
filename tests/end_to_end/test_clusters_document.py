"""docs/clusters.md: its commands are run or say why not, and its messages are the code's."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.conftest import clean_environment
from tests.documents import DOCS, REPOSITORY, commands_run_by, strings_of_the_code
from tests.patience import patience

TEXT = (DOCS / "clusters.md").read_text(encoding="utf-8")


def own_commands() -> list[str]:
    return commands_run_by(__file__, DOCS / "clusters.md")


def test_every_message_in_the_table_is_the_codes():
    code = strings_of_the_code()
    rows = [line for line in TEXT.splitlines() if line.startswith('| "')]
    assert len(rows) > 10
    for row in rows:
        for message in re.findall(r'"(.*?)"', row.split("|")[1]):
            # a name at the start may be a value in the code
            parts = [part.strip() for part in message.replace("torch is", "… is").split("…")]
            for part in filter(None, parts):
                assert part in code, f"the code doesn't say {part!r}"


def test_every_path_of_the_document_is_there():
    for path in re.findall(r"(?:launch|ds_configs|docs|tests)/[\w./-]+\w", TEXT):
        if not path.startswith("launch/START"):
            assert (REPOSITORY / path).exists(), path


@pytest.fixture
def workplace(tmp_path) -> Path:
    """A working folder with the configuration and the hostfile that the document speaks of."""
    content = yaml.safe_load((REPOSITORY / "launch/configs/llama8b.yaml").read_text(encoding="utf-8"))
    content["run_dir"] = str(tmp_path / "run")
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
    (tmp_path / "hostfile").write_text(TEXT.split("```\nnode-a")[1].split("```")[0].join(["node-a", ""]))
    return tmp_path


def run(words: list[str], cwd: Path) -> subprocess.CompletedProcess[str]:
    scripts = str(Path(sys.executable).parent)
    environment = clean_environment(PATH=os.pathsep.join([scripts, os.environ["PATH"]]), DS_ACCELERATOR="cpu")
    return subprocess.run(words, cwd=cwd, env=environment, capture_output=True, text=True, timeout=patience(120))


@pytest.mark.parametrize("command", [line for line in own_commands() if line.startswith("kappaspeech train")], ids=str)
def test_the_training_commands_are_accepted_and_print_what_they_run(command, workplace):
    """Eight GPUs or two hosts can't be had: `--dry-run` goes through all but the start, which tests/hosts takes over."""
    words = [word.replace("launch/configs/llama8b.yaml", "config.yaml") for word in shlex.split(command)]
    done = run([*words, *([] if "--dry-run" in words else ["--dry-run"])], workplace)
    assert done.returncode == 0, done.stderr
    assert "launch/train.sh config.yaml" in done.stdout


def test_the_plan_is_what_the_document_shows():
    (command,) = [line for line in own_commands() if " plan " in line]
    done = run([*shlex.split(command), "--set", "model.llm=launch/shapes/llama-3.1-8b"], REPOSITORY)
    assert done.returncode == 0, done.stderr
    for line in TEXT.split("```\nLLM ")[1].split("```")[0].splitlines()[1:]:
        assert line in done.stdout, f"the plan has changed; put its lines into docs/clusters.md:\n{done.stdout}"
