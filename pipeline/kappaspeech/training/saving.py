"""Checkpoints of a run: written when they are due, and resumed from."""

from __future__ import annotations

from collections.abc import Mapping

from kappaspeech.ranks.agreement import agreement
from kappaspeech.runs.checkpoints import check_fingerprints, prepare_resume, read_state
from kappaspeech.runs.saved_state import find_fault
from kappaspeech.training.cadence import Cadence
from kappaspeech.training.loop_state import LoopState
from kappaspeech.training.surroundings import Surroundings
from kappaspeech.zero3 import engine_state
from kappaspeech.zero3.engine import TrainingEngine


class Saver:
    """Saves and restores an engine with the loop's state. Every method is a collective."""

    def __init__(
        self, engine: TrainingEngine, state: LoopState, around: Surroundings, *, fingerprints: Mapping[str, str], keep: int
    ) -> None:
        self._engine = engine
        self._state = state
        self._around = around
        self._fingerprints = fingerprints
        self._keep = keep
        self._saved_step = 0

    def resume(self) -> int:
        """The step to resume at: that of the last checkpoint, restored; else 0."""
        cluster, folder = self._around.cluster, self._around.folder.checkpoints
        last, content = None, {}
        with agreement(cluster):
            if self._around.is_writer and (last := prepare_resume(folder, find_fault=find_fault)) is not None:
                content = read_state(last)
                check_fingerprints(last, content["fingerprints"], self._fingerprints)
        name, content = cluster.broadcast((last and last.name, content))
        if name is None:
            return 0
        self._state.restore(content)
        num_updates = self._state.bad_steps.num_updates(content["step"])
        engine_state.restore(self._engine, folder / name, cluster, num_updates=num_updates)
        self._saved_step = int(content["step"])
        return self._saved_step

    def save(self, step: int) -> None:
        """Save the state after `step` steps, unless it is saved already."""
        if step == self._saved_step:
            return
        cluster = self._around.cluster
        self._around.phases.enter("checkpoint")
        with agreement(cluster):
            self._around.lease.check()
        engine_state.save(
            self._engine,
            cluster,
            self._around.folder.checkpoints,
            step=step,
            state={"world_size": cluster.world_size, "fingerprints": dict(self._fingerprints), **self._state.to_json()},
            keep=self._keep,
            on_progress=self._around.phases.tick,
        )
        self._saved_step = step


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


class SaveEvery(Cadence):
    """Saves at a fixed distance of steps, so that a fault loses no more than these."""

    def __init__(self, saver: Saver, num_steps: int | None) -> None:
        self._saver = saver
        self._every = num_steps

    def after(self, step: int) -> str | None:
        if self._every and step % self._every == 0:
            self._saver.save(step)
        return None
