"""Checkpoints of a run: begun when they are due, written while the training goes on, and resumed from."""

from __future__ import annotations

import copy
import socket
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from kappaspeech.errors import RankFailure
from kappaspeech.escaping import for_terminal, make_logger
from kappaspeech.host_memory import free_memory_bytes
from kappaspeech.ranks.agreement import agreement
from kappaspeech.ranks.broken_exchange import is_broken_collective
from kappaspeech.runs.best import mark_best
from kappaspeech.runs.checkpoints import check_fingerprints, prepare_resume, read_state
from kappaspeech.runs.new_checkpoint import NewCheckpoint, Writing
from kappaspeech.runs.saved_state import find_fault
from kappaspeech.training.cadence import Cadence
from kappaspeech.training.loop_state import LoopState
from kappaspeech.training.surroundings import Surroundings
from kappaspeech.zero3 import engine_state
from kappaspeech.zero3.engine import TrainingEngine
from kappaspeech.zero3.host_copy import HostCopy

# The share of a host's free memory that copies may take: the rest is for the training that goes on beside them.
_USABLE_SHARE = 0.7
_GLANCE_SECONDS = 0.2
_log = make_logger(__name__)


@dataclass(frozen=True)
class LastCheckpoint:
    """A checkpoint that a run may go on from, and the content of its state.json."""

    path: Path
    state: Mapping[str, Any]


class Saver:
    """Saves and restores an engine with the loop's state. A checkpoint is written in the background, one at a time.

    Every method is a collective, but for `settle`.
    """

    def __init__(
        self, engine: TrainingEngine, state: LoopState, around: Surroundings, *, fingerprints: Mapping[str, str], keep: int
    ) -> None:
        self._engine = engine
        self._state = state
        self._around = around
        self._fingerprints = fingerprints
        self._keep = keep
        self._saved_step = 0
        self._beside = around.cluster.beside()
        self._copy = HostCopy()
        self._writing: Writing | None = None
        self._has_room = True

    def find_last(self) -> LastCheckpoint | None:
        """The checkpoint to go on from; None if there is none. Raises `CheckpointError` if it was trained with other inputs."""
        cluster, folder = self._around.cluster, self._around.folder.checkpoints
        last = prepare_resume(folder, cluster=cluster, find_fault=find_fault)
        if last is None:
            return None
        content = {}
        with agreement(cluster):
            if self._around.is_writer:
                content = read_state(last)
                check_fingerprints(last, content["fingerprints"], self._fingerprints)
        return LastCheckpoint(last, cluster.broadcast(content))

    def restore(self, last: LastCheckpoint | None) -> int:
        """The step to resume at: that of `last`, restored; else 0."""
        if last is None:
            return 0
        step = int(last.state["step"])
        self._state.restore(last.state)
        num_updates = self._state.bad_steps.num_updates(step)
        engine_state.restore(self._engine, last.path, self._around.cluster, num_updates=num_updates)
        self._saved_step = step
        return step

    def save(self, step: int, *, best_wer: float | None = None) -> None:
        """Begin to save the state after `step` steps, unless it is saved already; with `best_wer`, mark it as the best.

        Returns once the state is copied; if the hosts lack memory for copies, once it is saved.
        """
        if step == self._saved_step and best_wer is None:
            return
        self.finish()
        cluster, folder = self._around.cluster, self._around.folder.checkpoints

        def mark() -> None:
            if best_wer is not None:
                mark_best(folder, step=step, mean_wer=best_wer)

        if step == self._saved_step:
            with agreement(cluster):
                if self._around.is_writer:
                    mark()
            return
        self._around.phases.enter("checkpoint")
        state = {"world_size": cluster.world_size, "fingerprints": dict(self._fingerprints), **self._state.to_json()}
        self._writing = engine_state.save(
            self._engine,
            cluster,
            self._beside,
            NewCheckpoint(folder, step, copy.deepcopy(state), keep=self._keep, check=self._around.lease.check, on_whole=mark),
            choose_copy=self._choose_copy,
            on_progress=self._around.phases.tick,
        )
        self._saved_step = step
        if not self._has_room:
            self.finish()

    def look(self) -> None:
        """Raise what went wrong in the background, alike on every rank, once one of them knows that it is over."""
        if self._writing is None:
            return
        self._around.phases.enter("checkpoint")
        if any(self._around.cluster.gather(self._writing.is_done)):
            self.finish()

    def finish(self) -> None:
        """Return once the checkpoint that was begun last is whole; raise what went wrong in it, alike on every rank."""
        writing, self._writing = self._writing, None
        if writing is None:
            return
        self._around.phases.enter("checkpoint")
        self._wait(writing)
        if (failure := writing.failure()) is not None:
            raise failure

    def settle(self) -> None:
        """Let the last checkpoint become whole before an error ends the run, as far as the other ranks live. No collective."""
        writing, self._writing = self._writing, None
        if writing is None:
            return
        try:
            self._wait(writing)
        except RankFailure:
            # the error that ends the run names it
            return
        failure = writing.failure()
        if failure is not None and not is_broken_collective(failure):
            _log.warning("%s", failure)

    def _wait(self, writing: Writing) -> None:
        """Wait for the background, showing signs of life for as long as it makes progress. Raises `RankFailure`."""
        progress = writing.progress
        while not writing.wait(_GLANCE_SECONDS):
            self._around.watch.check()
            if writing.progress != progress:
                progress = writing.progress
                self._around.phases.tick()

    def _choose_copy(self, num_bytes: int) -> HostCopy | None:
        """The copy that takes a rank's `num_bytes`, or none, if a host lacks memory for its ranks' copies. All choose alike."""
        ranks = self._around.cluster.gather((socket.gethostname(), free_memory_bytes(), num_bytes - self._copy.num_bytes))
        hosts = [host for host, _, _ in ranks]
        free = [num_free // hosts.count(host) for host, num_free, _ in ranks]
        lacking = [rank for rank, (_, _, needed) in enumerate(ranks) if needed > _USABLE_SHARE * free[rank]]
        if lacking and self._has_room and self._around.is_writer:
            host, needed, there = hosts[lacking[0]], ranks[lacking[0]][2] / 1e9, free[lacking[0]] / 1e9
            line = (
                f"steps wait while checkpoints are written: a rank's copy on {host} would take {needed:.3g} GB of the "
                f"{there:.3g} GB that are free for it"
            )
            print(for_terminal(line), file=sys.stderr, flush=True)
        self._has_room = not lacking
        return self._copy if self._has_room else None


class SaveAtTheEnd(Cadence):
    """Saves after the last step, before the last evaluation, which may be long; and at any stop."""

    def __init__(self, saver: Saver, *, num_steps: int) -> None:
        self._saver = saver
        self._num_steps = num_steps

    def after(self, step: int) -> str | None:
        if step >= self._num_steps:
            self._saver.save(step)
        return None

    def end(self, step: int, reason: str | None) -> None:  # noqa: ARG002 - whatever the reason
        self._saver.save(step)
        self._saver.finish()


class SaveEvery(Cadence):
    """Saves at a fixed distance of steps, so that a fault loses no more than these, and looks after what was begun."""

    def __init__(self, saver: Saver, num_steps: int | None) -> None:
        self._saver = saver
        self._every = num_steps

    def after(self, step: int) -> str | None:
        self._saver.look()
        if self._every and step % self._every == 0:
            self._saver.save(step)
        return None

    def __exit__(self, _kind: type[BaseException] | None, error: BaseException | None, _trace: TracebackType | None) -> None:
        if isinstance(error, Exception):
            self._saver.settle()
