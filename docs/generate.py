"""Write docs/configuration.md and docs/cli.md from the code: python docs/generate.py."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from enum import Enum
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

import typer
from pydantic import BaseModel

from kappaspeech.artefacts import write_text
from kappaspeech.commands import app
from kappaspeech.comparison.experiment import ExperimentConfig
from kappaspeech.config.reference import list_sections
from kappaspeech.config.run_config import RunConfig

_MADE = "<!-- made by python docs/generate.py -->"
_CONFIGURATION = f"""{_MADE}

# Configuration

A training run is one YAML file. `launch/configs/llama8b.yaml` and `launch/configs/quickstart.yaml` are examples with a comment on
every line. This page lists every key; `kappaspeech config` prints the same list in a terminal.

- Relative paths count from the working folder.
- An unknown key is refused, with the nearest known key. All problems are reported at once.
- `--set` changes a value on the command line: `--set training.num_steps=100`. A value is YAML: `--set 'data.test=[]'`.
- The YAML owns batch, learning rates and steps. The DeepSpeed JSON owns ZeRO, precision and communication. A JSON that sets a
  key of the YAML is refused. [Precision](performance.md#what-a-run-computes-in) is
  `bf16.enabled` in the JSON: true, false or "auto".
- `kappaspeech config --schema` prints a JSON schema. With it an editor completes keys and marks errors.

In the tables "–" marks a key that must be given, and {{}} a section whose keys have the defaults of its own table.
"""
_PRESETS = """## DeepSpeed presets

`deepspeed` names one of these, or a JSON of your own. Each has `"bf16": {"enabled": "auto"}`.

| file | for |
|---|---|
| `ds_configs/zero3.json` | GPUs |
| `ds_configs/zero3_cpu.json` | processors: small models stay gathered between steps |
| `ds_configs/zero3_hpz.json` | several hosts of 8 GPUs with a slow network between them: each host keeps all parameters |
| `ds_configs/zero3_lean.json` | little memory: few parameters are gathered at a time |
| `ds_configs/zero3_offload_optimizer.json` | little GPU memory: the optimizer's state is in the host's memory |
| `ds_configs/zero3_offload.json` | less GPU memory still: parameters are in the host's memory too |
"""
_CLI = f"""{_MADE}

# Command line

`kappaspeech COMMAND --help` (or `-h`) prints the same. `kappaspeech --install-completion` installs completion for the current
shell.

Exit codes: 0 for done, 2 for wrong usage or input, 1 for a run that failed, 130 after Ctrl-C. `train` ends with 0 also when it
was asked to stop; `kappaspeech status` tells a stopped run from a finished one. `compare` ends with 75 if its trials were stopped
and the same command continues them.
"""


def write_pages(folder: Path) -> None:
    """Write both pages into `folder`."""
    write_text(folder / "configuration.md", make_configuration())
    write_text(folder / "cli.md", make_cli())


def make_configuration() -> str:
    """The page of all keys of a run's YAML, and of an experiment's, a table a section."""
    return "\n".join([_CONFIGURATION, *_tables(RunConfig, "Top level"), _PRESETS, *_tables(ExperimentConfig, "Experiments")])


def _tables(model: type[BaseModel], title_of_top: str) -> list[str]:
    parts = []
    for section in list_sections(model):
        defaults = ["–" if key.default is None else f"`{key.default}`" for key in section.keys]
        rows = [
            f"| `{key.name}` | {_cell(key.kind)} | {default} | {_cell(key.description)} |"
            for key, default in zip(section.keys, defaults, strict=True)
        ]
        title = f"`{section.path}`" if section.path else title_of_top
        note = " The entries of `data.test` have the same keys." if section.path == "data.train[]" else ""
        parts.append(f"## {title}\n\n{section.description}{note}\n")
        parts.append("| key | type | default | meaning |\n|---|---|---|---|\n" + "\n".join(rows) + "\n")
    return parts


def make_cli() -> str:
    """The page of all commands, a section each."""
    parts = [_CLI]
    for name, function in _list_commands(app, "kappaspeech"):
        parameters = [_describe(*item) for item in _list_parameters(function)]
        usage = " ".join([name, "[OPTIONS]", *(shown for shown, is_argument, *_ in parameters if is_argument)])
        parts.append(f"## {name}\n\n{_cell(inspect.getdoc(function) or '')}\n\n```\n{usage}\n```\n")
        rows = [f"| `{shown}` | {default} | {_cell(meaning)} |" for shown, _, default, meaning in parameters]
        parts.append("| | default | meaning |\n|---|---|---|\n" + "\n".join(rows) + "\n")
    return "\n".join(parts)


def _list_commands(group: typer.Typer, name: str) -> Iterator[tuple[str, Any]]:
    for command in group.registered_commands:
        assert command.callback is not None
        yield f"{name} {command.name or command.callback.__name__}", command.callback
    for inner in group.registered_groups:
        assert inner.typer_instance is not None
        yield from _list_commands(inner.typer_instance, f"{name} {inner.typer_instance.info.name}")


def _list_parameters(function: Any) -> Iterator[tuple[inspect.Parameter, Any, Any]]:
    """Each parameter, its type without null, and what typer was told of it."""
    hints = get_type_hints(function, include_extras=True)
    for parameter in inspect.signature(function).parameters.values():
        kind, info = get_args(hints[parameter.name])
        yield parameter, next((part for part in get_args(kind) if part is not NoneType), kind) if _is_union(kind) else kind, info


def _describe(parameter: inspect.Parameter, kind: Any, info: Any) -> tuple[str, bool, str, str]:
    """Return how an option is typed, whether it is an argument, its default, and its meaning."""
    is_required = parameter.default is inspect.Parameter.empty
    default = parameter.default.value if isinstance(parameter.default, Enum) else parameter.default
    shown = (
        "required" if is_required else "" if default is None or default is False else "yes" if default is True else f"`{default}`"
    )
    if type(info).__name__ == "ArgumentInfo":
        word = parameter.name.upper().strip("_") + ("…" if get_origin(kind) is list else "")
        return word if is_required else f"[{word}]", True, shown, info.help
    option = "--" + parameter.name.replace("_", "-")
    # in Annotated, typer keeps the first name where a default would be
    given = [name for name in (info.default, *info.param_decls) if isinstance(name, str)]
    names = ", ".join(given or ([f"{option} / --no-{parameter.name}"] if default is True else [option]))
    return f"{names} {_value(kind)}".strip(), False, shown, info.help


def _value(kind: Any) -> str:
    inner = get_args(kind)[0] if get_origin(kind) is list else kind
    if issubclass(inner, Enum):
        return "{" + ",".join(str(choice.value) for choice in inner) + "}"
    return {bool: "", int: "N", float: "X", Path: "PATH", str: "TEXT"}[inner]


def _is_union(kind: Any) -> bool:
    return get_origin(kind) in (Union, UnionType)


def _cell(text: str) -> str:
    """Text as a cell of a table holds it."""
    return text.replace("|", "\\|").replace("<", "&lt;")


if __name__ == "__main__":
    write_pages(Path(__file__).parent)
