"""Ranks forked from a process that has loaded every library already: a training of tiny models then takes a second or two.

`python -m tests.ranks.nursery` reads a JSON request a line and answers each with a line: {"arguments", "ranks", "environment",
"sabotage", "output"} starts `kappaspeech` that many times, and is answered with the ranks' process ids; {"wait": pids,
"timeout_seconds"} with their exit codes, negative for a signal, and null for one that still runs.
"""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from tests.conftest import clean_environment, free_port
from tests.patience import patience

PRELOADED = (
    "deepspeed.runtime.zero.muon.muon_optimizer",
    "kappaspeech.training.run",
    "soundfile",
    "soxr",
    "torch.utils.tensorboard",
    "transformers.models.auto.tokenization_auto",
    "transformers.models.llama.modeling_llama",
    "whisper",
)


class Nursery:
    """The other end, in the test's process. A context manager."""

    def __enter__(self) -> Nursery:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.ranks.nursery"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=clean_environment(OMP_NUM_THREADS="1", DS_ACCELERATOR="cpu", TORCH_CPP_LOG_LEVEL="ERROR"),
            cwd=Path(__file__).parents[2],
        )
        return self

    def __exit__(self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(patience(30))

    def start(
        self, *words: object, ranks: int, output: Path, sabotage: Sequence[str] = (), environment: dict[str, str] | None = None
    ) -> list[int]:
        """Start `kappaspeech` on `ranks` ranks, which write to `output`; their process ids.

        `sabotage`: name and arguments of a function of tests/ranks/sabotage.py, called in each rank before.
        """
        request = {"arguments": list(map(str, words)), "ranks": ranks, "output": str(output), "sabotage": list(sabotage)}
        pids: list[int] = self._ask({**request, "environment": environment or {}})
        return pids

    def wait(self, pids: Sequence[int], *, timeout_seconds: float = patience(60)) -> list[int | None]:
        """The ranks' exit codes."""
        codes: list[int | None] = self._ask({"wait": list(pids), "timeout_seconds": timeout_seconds})
        return codes

    def _ask(self, request: dict[str, Any]) -> Any:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())


def serve() -> None:
    for name in PRELOADED:
        importlib.import_module(name)
    assert len(os.listdir("/proc/self/task")) == 1, "a process with threads can't be forked safely"
    codes: dict[int, int] = {}
    alive: set[int] = set()
    for line in sys.stdin:
        request = json.loads(line)
        if "wait" in request:
            deadline = time.monotonic() + request["timeout_seconds"]
            while alive & set(request["wait"]) and time.monotonic() < deadline:
                for pid in list(alive):
                    ended, status = os.waitpid(pid, os.WNOHANG)
                    if ended:
                        alive.remove(pid)
                        codes[pid] = os.waitstatus_to_exitcode(status)
                time.sleep(0.02)
            answer = [codes.get(pid) for pid in request["wait"]]
        else:
            port = free_port()
            answer = []
            for rank in range(request["ranks"]):
                pid = start(rank, port, request)
                # all ranks of a start are one process group, so that a test can kill them at one blow
                os.setpgid(pid, answer[0] if answer else pid)
                answer.append(pid)
            alive |= set(answer)
        print(json.dumps(answer), flush=True)
    for pid in alive:
        os.kill(pid, 9)


def start(rank: int, port: int, request: dict[str, Any]) -> int:
    pid = os.fork()
    if pid:
        return pid
    while os.getpgrp() == os.getppid():
        time.sleep(0.001)  # until this process has been put into its group
    code = 1
    try:
        os.environ.update(
            {
                "RANK": str(rank),
                "WORLD_SIZE": str(request["ranks"]),
                "LOCAL_RANK": str(rank),
                "LOCAL_WORLD_SIZE": str(request["ranks"]),
            }
        )
        os.environ.update({"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), **request["environment"]})
        descriptor = os.open(request["output"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        for stream in (1, 2):
            os.dup2(descriptor, stream)
        os.close(0)
        from kappaspeech.commands import main
        from tests.ranks import sabotage

        if request["sabotage"]:
            name, *arguments = request["sabotage"]
            getattr(sabotage, name)(*arguments)
        code = main(request["arguments"])
    except SystemExit as leave:
        code = int(leave.code or 0)
    except BaseException:  # noqa: BLE001 - as the interpreter would, at the top of a rank
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    serve()
