"""The import arrows of the design, and what must stay out of the command line's start-up."""

from __future__ import annotations

import ast
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from tests.imports import imported
from tests.patience import patience

PACKAGE = Path(__file__).parents[2] / "pipeline/kappaspeech"
# what each room may import of this project, itself and the ground floor aside
GROUND = {
    "processes",
    "labels",
    "errors",
    "redaction",
    "artefacts",
    "outputs",
    "json_lines",
    "colours",
    "progress",
    "processors",
    "gpus",
    "host_memory",
    "allocator",
    "outside",
    "escaping",
    "expert_names",
    "parenthood",
    "signals",
    "shipped",
    "package_versions",
    "needed_packages",
}
ARROWS = {
    "processes": set(),
    "labels": set(),
    "redaction": set(),
    "errors": {"redaction"},
    "artefacts": {"errors"},
    "outside": {"errors"},
    "outputs": set(),
    "escaping": {"redaction"},
    "json_lines": {"errors", "escaping", "outputs"},
    "colours": set(),
    "expert_names": set(),
    "progress": {"escaping"},
    "processors": set(),
    "gpus": {"errors", "escaping"},
    "host_memory": set(),
    "allocator": {"package_versions"},
    "parenthood": set(),
    "signals": set(),
    "shipped": set(),
    "package_versions": set(),
    "needed_packages": {"errors"},
    "blas": set(),
    "config": set(),
    "ranks": set(),
    "tensor_files": set(),
    "selection": set(),
    "loggers": set(),
    "runs": {"config", "selection", "ranks", "model", "speech", "tensor_files", "loggers"},
    "scan": {"selection", "ranks", "tensor_files", "model", "runs"},
    "speech": {"config", "tensor_files"},
    "model": set(),
    "planning": {"config", "ranks", "model", "speech", "selection", "scan", "tensor_files"},
    "portable": {"model", "speech"},
    "trained": {"config", "selection", "model", "speech", "scan", "runs", "evaluation", "portable", "tensor_files"},
    "diagnosis": {"config", "ranks", "model", "evaluation", "speech", "planning", "runs", "training", "zero3"},
    "evaluation": {"config", "ranks", "model", "speech"},
    "training": {
        "config",
        "ranks",
        "selection",
        "tensor_files",
        "scan",
        "model",
        "speech",
        "evaluation",
        "planning",
        "runs",
        "zero3",
    },
    "zero3": {"config", "ranks", "tensor_files", "model", "planning", "runs"},
    "comparison": {"config", "selection", "scan", "model", "evaluation", "runs"},
    "launching": {"runs", "ranks"},
    "demo": {"speech", "runs", "model", "config"},
    "commands": {
        "config",
        "ranks",
        "selection",
        "scan",
        "speech",
        "model",
        "evaluation",
        "runs",
        "trained",
        "training",
        "planning",
        "diagnosis",
        "comparison",
        "demo",
        "launching",
        "blas",
    },
    "__main__": {"commands"},
    "__init__": set(),
}
# third-party packages that have one place
PLACES = {
    "fsspec": {"speech"},
    "aiohttp": {"speech"},
    "datasets": {"speech"},
    "deepspeed": {"ranks", "zero3"},
    "mpi4py": {"ranks"},
    "typer": {"commands"},
    "matplotlib": {"comparison", "scan"},
    "wandb": {"loggers"},
    "trackio": {"loggers"},
    "mlflow": {"loggers"},
}


def modules() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def room(path: Path) -> str:
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def dotted(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def import_graph() -> dict[str, set[str]]:
    """The imports between this project's modules, by dotted names; also inside functions, and for types alone."""
    known = {dotted(path): path for path in modules()}
    graph: dict[str, set[str]] = {name: set() for name in known}
    for name, path in known.items():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                graph[name] |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                inside = [f"{node.module}.{alias.name}" for alias in node.names]
                graph[name] |= {module if module in known else node.module for module in inside}
        graph[name] &= set(known)
    return graph


def find_circle(graph: dict[str, set[str]]) -> list[str]:
    """A module, those through which it imports itself, and itself again; nothing if none does."""
    done: set[str] = set()

    def walk(name: str, trail: list[str]) -> list[str]:
        if name in trail:
            return [*trail[trail.index(name) :], name]
        if name not in done:
            for other in sorted(graph.get(name, ())):
                if found := walk(other, [*trail, name]):
                    return found
            done.add(name)
        return []

    return next((found for name in sorted(graph) if (found := walk(name, []))), [])


def test_no_module_imports_itself_through_others():
    assert find_circle(import_graph()) == []


def test_rooms_stand_in_no_circle():
    assert (
        find_circle({name: allowed | (GROUND - {name} if name not in GROUND else set()) for name, allowed in ARROWS.items()})
        == []
    )


def test_a_circle_is_found_wherever_it_is():
    graph = {"a": {"b"}, "b": {"c", "d"}, "c": set(), "d": {"e"}, "e": {"b"}}
    assert find_circle(graph) == ["b", "d", "e", "b"]
    assert find_circle({**graph, "e": {"c"}}) == []


def test_the_graph_holds_the_imports_inside_functions():
    graph = import_graph()
    assert "kappaspeech.ranks.mpi_cluster" in graph["kappaspeech.ranks.start"]
    assert "kappaspeech.launching.leftovers" in graph["kappaspeech.launching.attempt"]


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_follow_the_arrows(path):
    ours = {name.split(".")[1] for name in imported(path) if name.startswith("kappaspeech.")}
    allowed = ARROWS[room(path)] | GROUND | {room(path)}
    assert ours <= allowed, f"{path.name} may not import {sorted(ours - allowed)}"


@pytest.mark.parametrize("package", sorted(PLACES))
def test_a_library_is_named_in_its_place_alone(package):
    users = {room(path) for path in modules() if any(name.split(".")[0] == package for name in imported(path))}
    assert users <= PLACES[package]


def test_no_room_is_without_a_rule():
    assert {room(path) for path in modules()} <= set(ARROWS)


def test_blas_is_pinned_before_it_is_loaded():
    """A library that was loaded before wouldn't see it, and would run on all cores."""
    code = (
        "import os, sys; from kappaspeech.commands import main; before = []; import kappaspeech.blas as blas; "
        "real = blas.pin_threads; blas.pin_threads = lambda *a: (before.append('numpy' in sys.modules), real(*a)); "
        "main(['scan', 'nowhere.safetensors', '--workers', '1']); assert before == [False], before"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=patience(60), cwd=PACKAGE.parent)
    assert done.returncode == 0, done.stderr


def test_help_answers_at_once_and_loads_nothing_heavy():
    code = (
        "import sys; from kappaspeech.commands import main; main(['--help']); "
        "heavy = {'torch', 'numpy', 'deepspeed', 'transformers', 'whisper', 'scipy', 'pydantic'} & set(sys.modules); "
        "assert not heavy, heavy"
    )
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=patience(60), cwd=PACKAGE.parent)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode == 0, done.stderr
    # processor time: what a busy machine adds to the wait isn't ours
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < patience(0.5)


@pytest.mark.parametrize(
    "module", ["scan.stage", "ranks.workers", "scan.picture", "ranks.pipe_cluster", "runs.folder", "runs.result"]
)
def test_a_scan_and_the_reading_of_runs_need_no_torch(module):
    """A worker of a scan would pay for it with a second and 182 MB."""
    code = f"import sys; sys.modules['torch'] = None; import kappaspeech.{module}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=patience(60), cwd=PACKAGE.parent)
    assert done.returncode == 0, done.stderr[-2000:]


def test_a_scan_of_a_checkpoint_reads_no_runs_and_no_configurations():
    """They are a seventh of its start; a scan of a run needs them."""
    code = (
        "import sys, kappaspeech.scan.stage; "
        "unneeded = {'kappaspeech.config', 'kappaspeech.runs.result', 'yaml'} & set(sys.modules); assert not unneeded, unneeded"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=patience(60), cwd=PACKAGE.parent)
    assert done.returncode == 0, done.stderr[-2000:]
