"""A case: one thing to measure, in a process of its own, which writes down each number as soon as it is known."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from kappaspeech.artefacts import write_json

REPOSITORY = Path(__file__).parents[2]
PRESETS = REPOSITORY / "ds_configs"


@dataclass(frozen=True)
class Context:
    """The options of a case: the shape (8b, 1b, tiny), where it may write, how long it may take, and real models, if any.

    `scratch` is shared by the cases of a section, and gone after it.
    """

    shape: str
    device: torch.device
    scratch: Path
    seconds: float
    models: Path | None = None
    began: float = field(default_factory=time.monotonic)

    @property
    def seconds_left(self) -> float:
        return self.began + self.seconds - time.monotonic()

    @property
    def is_rehearsal(self) -> bool:
        return self.device.type == "cpu"

    def synchronize(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


class Report:
    """The facts of a case, written to a file whenever one is added; `line` is what a person is told."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.facts: dict[str, Any] = {"status": "running"}

    def add(self, **facts: Any) -> None:
        self.facts.update(facts)
        write_json(self._path, self.facts)


Run = Callable[[Context, Report], None]


@dataclass(frozen=True)
class Case:
    """`seconds` is what it may take on a GPU at most, of what its section has left."""

    name: str
    run: Run
    seconds: float = 60.0


class Differs(Exception):
    """Numbers that had to be equal aren't; they are in the report."""


def run_command(context: Context, *words: object, cwd: Path | None = None) -> tuple[float, str]:
    """Run `kappaspeech` with these words; the seconds it took, and what it said. Raises `RuntimeError` with its last words."""
    began = time.monotonic()
    done = subprocess.run(
        command_line(*words),
        cwd=cwd,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=max(context.seconds_left, 1.0),
        check=False,
    )
    if done.returncode != 0:
        raise RuntimeError(f"kappaspeech {words[0]} ended with {done.returncode}:\n{done.stdout[-3000:]}")
    return time.monotonic() - began, done.stdout


def command_line(*words: object) -> list[str]:
    return [sys.executable, "-m", "kappaspeech", *map(str, words)]


def median_seconds(context: Context, work: Callable[[], object], *, budget_seconds: float = 0.5, tries: int = 50) -> float:
    """The median of repeats, each waited for, after two that prepare kernels and memory."""
    for _ in range(2):
        work()
    seconds: list[float] = []
    ends = time.perf_counter() + budget_seconds
    while len(seconds) < 3 or (len(seconds) < tries and time.perf_counter() < ends):
        context.synchronize()
        began = time.perf_counter()
        work()
        context.synchronize()
        seconds.append(time.perf_counter() - began)
    return sorted(seconds)[len(seconds) // 2]


def fast_scratch(needed_bytes: int) -> Path:
    """Memory if it has the room and some to spare, for a disk may be slow; else the folder of temporary files."""
    memory = Path("/dev/shm")
    if memory.is_dir():
        room = os.statvfs(memory)
        if room.f_bavail * room.f_frsize > 1.25 * needed_bytes:
            return memory
    return Path(tempfile.gettempdir())
