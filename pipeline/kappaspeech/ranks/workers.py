"""Ranks of a command as processes on this machine, where no launcher starts them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from types import FrameType

from kappaspeech.parenthood import as_helper
from kappaspeech.ranks.pipe_cluster import Hub
from kappaspeech.signals import Handling

_POLL_SECONDS = 0.02
# Ranks that outlive a dead one find out by themselves and report more than this process could; they get this time for it.
_PATIENCE_SECONDS = 40.0


def count_devices(device: str) -> int:
    """The number of ranks that `device` is for: the number of GPUs for `cuda`, one for any other."""
    import torch

    return max(1, torch.cuda.device_count()) if device == "cuda" else 1


def run_workers(arguments: Sequence[str], *, num_workers: int, variables: Mapping[str, str] | None = None) -> int:
    """Start `kappaspeech ARGUMENTS`, with these variables, as that many ranks and wait; return the first code that isn't 0.

    A signal that ends this process ends them; if it has no chance to, they notice that it is gone.
    """
    hub = Hub(num_workers)
    command = [sys.executable, "-m", "kappaspeech", *arguments]
    workers: list[subprocess.Popen[bytes]] = []

    def pass_on(number: int, _frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    try:
        with Handling(pass_on, numbers=[signal.SIGTERM]):
            # one that can't be started ends those that were
            for rank in range(num_workers):
                own = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(num_workers), **hub.environment(rank)}
                environment = {**os.environ, **(variables or {}), **as_helper(), **own}
                workers.append(subprocess.Popen(command, env=environment, pass_fds=hub.file_descriptors(rank)))
            hub.close_far_ends()
            return _wait(workers)
    finally:
        for worker in workers:
            if worker.poll() is None:
                worker.terminate()
        for worker in workers:
            try:
                worker.wait(timeout=5)
            except subprocess.TimeoutExpired:
                worker.kill()


def _wait(workers: Sequence[subprocess.Popen[bytes]]) -> int:
    """Poll until all have ended, or until the rest have had their time after a first one failed."""
    result, failed_at = 0, 0.0
    waiting = dict(enumerate(workers))
    while waiting:
        for rank, worker in list(waiting.items()):
            code = worker.poll()
            if code is None:
                continue
            del waiting[rank]
            if code < 0:
                print(f"error: rank {rank} was ended by signal {-code}", file=sys.stderr, flush=True)
            if code != 0 and result == 0:
                result, failed_at = code if code > 0 else 1, time.monotonic()
        if result and time.monotonic() - failed_at > _PATIENCE_SECONDS:
            break
        time.sleep(_POLL_SECONDS)
    return result
