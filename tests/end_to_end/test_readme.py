"""The README's commands, to the letter but for the model's name and size."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.conftest import clean_environment
from tests.patience import patience

REPOSITORY = Path(__file__).parents[2]


def blocks(heading: str) -> list[list[str]]:
    """The commands of each bash block under a heading of the README."""
    text = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    section = text.partition(f"## {heading}\n")[2].partition("\n## ")[0]
    return [[line for line in block.splitlines() if line] for block in re.findall(r"```bash\n(.*?)```", section, re.DOTALL)]


@pytest.fixture
def workplace(home, tmp_path) -> Path:
    """A working folder with recordings, and the README's configuration with a model that fits here."""
    shutil.copytree(home / "speech", tmp_path / "recordings")
    content = yaml.safe_load((REPOSITORY / "launch/configs/llama8b.yaml").read_text(encoding="utf-8"))
    content["model"] |= {"llm": str(home / "llm"), "encoder": str(home / "whisper.pt"), "adaptor": {"width": 32, "num_heads": 4}}
    content["training"] |= {"num_steps": 2, "evaluate_every_steps": 0, "checkpoint_every_steps": 0}
    content["batch"] |= {"max_samples": 2, "micro_batches_per_step": 2}
    content["deepspeed"] = str(REPOSITORY / "ds_configs/zero3.json")
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
    return tmp_path


@pytest.mark.slow
def test_the_commands_for_a_real_model_run_as_written(home, workplace):
    (commands,) = blocks("On a real model")
    assert len(commands) > 8
    scripts = str(Path(sys.executable).parent)
    environment = clean_environment(
        PATH=os.pathsep.join([scripts, os.environ["PATH"]]), OMP_NUM_THREADS="1", DS_ACCELERATOR="cpu", PYTHONPATH=str(REPOSITORY)
    )
    for command in commands:
        words = shlex.split(command)
        words = [
            {
                "meta-llama/Llama-3.1-8B-Instruct": str(home / "llm"),
                "launch/configs/llama8b.yaml": "config.yaml",
                "launch/train.sh": str(REPOSITORY / "launch/train.sh"),
                # the small model has 17 matrices
                "100": "4",
            }.get(word, word)
            for word in words
        ]
        done = subprocess.run(words, cwd=workplace, env=environment, capture_output=True, text=True, timeout=patience(120))
        assert done.returncode == 0, f"{command}\n{done.stdout[-1500:]}\n{done.stderr[-3000:]}"
    assert (workplace / "comparison/report.html").exists()
    assert (workplace / "exported/model.safetensors").exists()


def test_the_two_commands_are_there():
    (commands,) = blocks("Two commands")
    for command in commands:
        script = shlex.split(command, comments=True)[1]
        done = subprocess.run(["bash", "-n", str(REPOSITORY / script)], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr


def test_every_path_that_the_readme_names_is_there():
    text = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    for path in re.findall(r"(?:launch|ds_configs|docs|tests)/[\w./-]+\w", text):
        assert (REPOSITORY / path).exists(), path
    for path in re.findall(r"\]\((?!https?:)([^)#]+)\)", text):
        assert (REPOSITORY / path).exists(), path
