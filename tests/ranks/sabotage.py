"""Faults that a test puts into a rank before it starts. Each function takes the arguments that the test gave, as text."""

from __future__ import annotations

import os
import signal
import time
from typing import Any

from pipeline.training.engine import TrainingEngine
from pipeline.training.tensor_file import TensorFileWriter


def at_step(rank: str, step: str, what: str) -> None:
    """Do `what` on a rank in the middle of its optimizer step number `step`, counted from this start."""
    _before(TrainingEngine, "step", int(rank), int(step), what)


def in_save(rank: str, tensor: str, what: str) -> None:
    """Do `what` on a rank before it writes the given tensor of the checkpoints it writes, counted from this start."""
    _before(TensorFileWriter, "add", int(rank), int(tensor), what)


def _before(owner: type, method: str, rank: int, number: int, what: str) -> None:
    if int(os.environ["RANK"]) != rank:
        return
    real, calls = getattr(owner, method), [0]

    def replaced(*arguments: Any, **named: Any) -> Any:
        if calls[0] == number:
            WHAT[what]()
        calls[0] += 1
        return real(*arguments, **named)

    setattr(owner, method, replaced)


def _raise() -> None:
    raise ValueError("a matrix fell over")


def _fill_the_disk() -> None:
    raise OSError(28, "No space left on device")


def _loop() -> None:
    while True:
        time.sleep(0.01)


WHAT = {
    "raise": _raise,
    "fill the disk": _fill_the_disk,
    "loop": _loop,
    "stop": lambda: os.kill(os.getpid(), signal.SIGSTOP),
    "kill": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "terminate": lambda: os.kill(os.getpid(), signal.SIGTERM),
}
