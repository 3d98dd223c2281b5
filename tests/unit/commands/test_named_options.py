"""Messages name an option as it is typed, and a key of the YAML by its whole path."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from typing import Any

import pytest
import typer

from kappaspeech.commands import app
from kappaspeech.comparison.experiment import ExperimentConfig
from kappaspeech.config.reference import list_sections
from kappaspeech.config.run_config import RunConfig
from tests.documents import REPOSITORY

# of other programs: sbatch and srun, docker, launchers, tensorboard, tar
OTHERS = {"--nodes", "--time", "--mpi", "--shm-size", "--ipc", "--master_port", "--logdir", "--sparse"} | {
    "--allow-incomplete-ranks",
    "--backend-store-uri",
}
# keys without a section
TOP_LEVEL = {"run_dir", "type_fraction"}
# file names
ENDINGS = ("json", "jsonl", "jinja", "yaml", "html", "py", "md", "tsv", "csv", "tar", "gz", "sh", "pt", "txt", "safetensors")


def commands(group: Any) -> Iterator[Any]:
    for command in group.commands.values():
        yield from commands(command) if hasattr(command, "commands") else [command]


PARAMETERS = [parameter for command in commands(typer.main.get_command(app)) for parameter in command.params]
OPTIONS = {option for parameter in PARAMETERS for option in parameter.opts if option.startswith("--")}
# names that differ from what is typed
NAMES = {parameter.name for parameter in PARAMETERS if f"--{parameter.name}" not in OPTIONS and "_" in parameter.name.strip("_")}
KEYS = {
    re.sub(r"\[\]", "", f"{section.path}.{key.name}" if section.path else key.name)
    for model in (RunConfig, ExperimentConfig)
    for section in list_sections(model)
    for key in section.keys
}
SECTIONS = {key.split(".")[0] for key in KEYS if "." in key}


def messages() -> Iterator[tuple[str, str]]:
    """Every string of the package that reads as a sentence, without docstrings and field descriptions, and its place."""
    for path in sorted((REPOSITORY / "pipeline").rglob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        skipped: set[ast.AST] = set()
        for node in ast.walk(tree):
            if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
                skipped.add(node.value)
            if isinstance(node, ast.keyword) and node.arg == "description":
                skipped |= set(ast.walk(node.value))
            if isinstance(node, ast.JoinedStr):
                skipped |= set(node.values)
        for node in ast.walk(tree):
            text = ""
            if node in skipped:
                continue
            if isinstance(node, ast.JoinedStr):
                text = "".join(str(part.value) if isinstance(part, ast.Constant) else "…" for part in node.values)
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                text = node.value
            if " " in text.strip():
                yield f"{path.relative_to(REPOSITORY)}:{getattr(node, 'lineno', 0)}", text


MESSAGES = list(messages())


def unknown_options(text: str) -> list[str]:
    return [option for option in re.findall(r"(?<![\w-])--[a-z][a-z_-]*", text) if option not in OPTIONS | OTHERS]


def parameter_names(text: str) -> list[str]:
    """Names of parameters that stand for options, and keys without their section."""
    words = re.findall(r"(?<![\w.=/-])([a-z]+(?:_[a-z0-9]+)+)(?![\w(=.])", text)
    last = {key.split(".")[-1] for key in KEYS if "." in key}
    return [word for word in words if word in NAMES | last and word not in TOP_LEVEL]


def unknown_keys(text: str) -> list[str]:
    dotted = re.findall(r"(?<![\w./@-])([a-z]+(?:\.[a-z0-9_]+)+)(?![\w/(@-])", text)
    named = [key for key in dotted if key.split(".")[0] in SECTIONS and not key.endswith(ENDINGS)]
    return [key for key in named if re.sub(r"\.\d+", "", key) not in KEYS]


def test_the_search_finds_what_it_looks_for():
    assert len(MESSAGES) > 500
    assert sum(bool(re.search(r"--[a-z]", text)) for _, text in MESSAGES) > 40
    assert unknown_options("give --max_samples or --count") == ["--max_samples"]
    assert parameter_names("max_new_tokens is 0; batch.max_samples, training.num_steps=3 and num_steps") == [
        "max_new_tokens",
        "num_steps",
    ]
    assert unknown_keys("set data.train.0.shards and batch.max_sample in evaluation.json") == ["batch.max_sample"]


@pytest.mark.parametrize("find", [unknown_options, parameter_names, unknown_keys], ids=lambda find: find.__name__)
def test_messages_name_options_and_keys_as_they_are_typed(find):
    # of a section's own validators, pydantic says the section first
    said = [(place, text) for place, text in MESSAGES if find is not parameter_names or "_config.py" not in place]
    assert {place: found for place, text in said if (found := find(text))} == {}
