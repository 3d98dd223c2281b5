"""Ranks that are killed, stopped, stuck or fail in training: all end within seconds, told of the cause, and a restart goes on."""

from __future__ import annotations

import json
import os
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests import tiny
from tests.ranks.nursery import Nursery

# far above a tiny step on a loaded machine, far below a test's patience
STALL_SECONDS = 6.0
HOST = socket.gethostname()
KEYS = ("step", "loss_nats", "grad_norm", "keys_digest", "num_target_tokens", "learning_rates")


@pytest.fixture(scope="module")
def nursery() -> Iterator[Nursery]:
    with Nursery() as opened:
        yield opened


@pytest.fixture(scope="module")
def float32(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("deepspeed") / "float32.json"
    path.write_text(json.dumps({"zero_optimization": {"stage": 3, "stage3_param_persistence_threshold": 0}}))
    return str(path)


class Training:
    """A run that can be started again and again."""

    def __init__(self, nursery: Nursery, home: Path, folder: Path, **changes: Any) -> None:
        self.run, self.output, self._nursery = folder / "run", folder / "output.txt", nursery
        self.config = tiny.write_config(folder / "run.yaml", home, self.run, **{"data__test": [], **changes})

    def start(self, *, ranks: int = 2, sabotage: tuple[str, ...] = (), **environment: str) -> list[int]:
        self.output.unlink(missing_ok=True)
        return self._nursery.start(
            "train", self.config, ranks=ranks, output=self.output, sabotage=sabotage, environment=environment
        )

    def wait(self, pids: list[int], timeout_seconds: float = 60) -> list[int | None]:
        codes = self._nursery.wait(pids, timeout_seconds=timeout_seconds)
        for pid, code in zip(pids, codes, strict=True):
            if code is None:
                os.kill(pid, signal.SIGKILL)
        return codes

    def finish(self, *, ranks: int = 2, sabotage: tuple[str, ...] = ()) -> list[int | None]:
        return self.wait(self.start(ranks=ranks, sabotage=sabotage))

    @property
    def said(self) -> str:
        return self.output.read_text(errors="replace")

    @property
    def status(self) -> str:
        return str(json.loads((self.run / "run.json").read_text())["status"])

    @property
    def steps(self) -> list[dict[str, Any]]:
        path = self.run / "steps.jsonl"
        lines = path.read_text().splitlines(keepends=True) if path.exists() else []
        records = [json.loads(line) for line in lines if line.endswith("\n")]
        return [{key: record[key] for key in KEYS} for record in records]

    @property
    def checkpoints(self) -> list[str]:
        return sorted(path.name for path in (self.run / "checkpoints").iterdir())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fault", "rank", "codes", "cause"),
    [
        ("raise", 1, [1, 1], f"rank 1 on {HOST} failed: ValueError: a matrix fell over"),
        ("kill", 1, [1, -9], f"rank 1 on {HOST} failed: it ended without a word"),
        ("kill", 0, [-9, 1], f"rank 0 on {HOST} failed: "),
        (
            "loop",
            1,
            [1, 1],
            f"rank 1 on {HOST} failed: no rank has got on for 6 s (training.stall_seconds is 6): the others wait for rank 1",
        ),
        ("stop", 1, [1, None], "its process is stopped (SIGSTOP)"),
        ("stop", 0, [None, 1], f"rank 0 on {HOST} failed: the ranks' common store hasn't answered"),
    ],
)
def test_a_ranks_fault_ends_the_others_with_its_cause(nursery, home, tmp_path, fault, rank, codes, cause):
    training = Training(nursery, home, tmp_path, training__num_steps=1000, training__stall_seconds=STALL_SECONDS)
    pids = training.start(sabotage=("at_step", str(rank), "3", fault))
    deadline = time.monotonic() + 40
    while len(training.steps) < 3:
        assert time.monotonic() < deadline, training.said
        time.sleep(0.05)
    began = time.monotonic()
    survivor = pids[1 - rank]
    assert training.wait([survivor], 40) == [codes[1 - rank]], training.said
    took_seconds = time.monotonic() - began
    # what isn't heard of takes the limit, and then the grace that the work has to heed it
    assert took_seconds < (STALL_SECONDS if fault in ("loop", "stop") else 0) + 15
    assert training.wait(pids, 2 if None in codes else 15) == codes
    assert f"error: rank {rank} on {HOST} failed: " in training.said
    assert training.said.count(f"error: {cause}" if cause.startswith("rank") else cause) == 1
    if fault != "raise":
        assert "where each rank stands:\n  rank 0 on " in training.said
    if fault == "loop":
        assert "rank 1, which the others wait for, is here:" in training.said
        assert "in _loop" in training.said
    assert training.status == "failed"
