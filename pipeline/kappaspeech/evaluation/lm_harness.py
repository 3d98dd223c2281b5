"""EleutherAI's lm-evaluation-harness on an export, whose LLM is one like any other: what of text tasks training has cost."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from kappaspeech.errors import InputError
from kappaspeech.needed_packages import need


def check_harness(folder: Path) -> None:
    """Raise `InputError` if the harness isn't installed, or `folder` is no export with a whole LLM."""
    if not (folder / "config.json").exists() or (folder / "run.json").exists():
        raise InputError(f"--lm-eval reads an export, and {folder} is none. Write one with `kappaspeech export` first.")
    if (folder / "modeling_kappaspeech.py").exists():
        raise InputError(f"--lm-eval reads the LLM, and {folder} is one model with its encoder. Export the LLM: --only llm.")
    need("--lm-eval", "lm_eval")


def run_harness(folder: Path, tasks: Sequence[str], *, device: str) -> dict[str, Any]:
    """Each task's metrics, as JSON. A task is a name that the harness knows, whose data it may download, or a .yaml file of one.

    Raises `InputError`.
    """
    check_harness(folder)
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    files = [Path(task) for task in tasks if task.endswith(".yaml")]
    manager = TaskManager(include_path=[str(file.parent) for file in files] or None)
    names = [_task_name(Path(task)) if task.endswith(".yaml") else task for task in tasks]
    unknown = sorted(set(names) - set(manager.all_tasks))
    if unknown:
        raise InputError(f"lm-evaluation-harness knows no task {', '.join(unknown)}. `lm-eval ls tasks` lists them.")
    done = simple_evaluate("hf", {"pretrained": str(folder)}, list(names), device=device, task_manager=manager, log_samples=False)
    # on one process there is always a result
    assert done is not None
    return {
        name: {metric: value for metric, value in found.items() if isinstance(value, (int, float))}
        for name, found in done["results"].items()
    }


def _task_name(path: Path) -> str:
    try:
        return str(yaml.safe_load(path.read_text(encoding="utf-8"))["task"])
    except (OSError, UnicodeDecodeError, yaml.YAMLError, KeyError, TypeError) as error:
        raise InputError(f"{path} can't be read as a task of lm-evaluation-harness: {error!r}") from error
