"""The cadences of a run, in the order in which they come after each step. A new one is made here, and nowhere else."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack

from kappaspeech.config.run_config import RunConfig
from kappaspeech.ranks.agreement import agreement
from kappaspeech.runs.records import RunLog
from kappaspeech.training.budget import KeepBudget
from kappaspeech.training.cadence import Cadence
from kappaspeech.training.describing import Describe
from kappaspeech.training.evaluating import Evaluate, Evaluator
from kappaspeech.training.forecast import Forecast
from kappaspeech.training.loaded import Loaded
from kappaspeech.training.loop_state import LoopState
from kappaspeech.training.partitioned import Partitioned
from kappaspeech.training.saving import SaveAtTheEnd, SaveEvery, Saver
from kappaspeech.training.surroundings import Surroundings
from kappaspeech.training.tracing import BeginTrace, EndTrace, Tracer


class StopWhenAsked(Cadence):
    """Stops by signals, the STOP file, a time budget or the end of a launcher: if one rank wishes it, all stop."""

    def __init__(self, around: Surroundings) -> None:
        self._around = around
        self._opened = ExitStack()

    def __enter__(self) -> None:
        self._opened.enter_context(self._around.stop)

    def __exit__(self, *_: object) -> None:
        self._opened.close()

    def wish(self) -> str | None:
        return self._around.stop.reason()

    def end(self, step: int, reason: str | None) -> None:  # noqa: ARG002 - wherever it stops
        if reason is None:
            return
        with agreement(self._around.cluster):
            if self._around.is_writer:
                self._around.stop.clear_file()


def make_cadences(
    config: RunConfig,
    loaded: Loaded,
    partitioned: Partitioned,
    state: LoopState,
    around: Surroundings,
    *,
    saver: Saver,
    log: RunLog | None,
    forecast: Forecast,
) -> Sequence[Cadence]:
    """The cadences that `config` asks for."""
    options = config.training
    cadences: list[Cadence] = [SaveAtTheEnd(saver, num_steps=options.num_steps)]
    if loaded.measured:
        # first, so that a checkpoint holds the weight from there on
        cadences.insert(0, KeepBudget(config, loaded.measured, partitioned, state.anchor_weight, around, log=log))
    if loaded.test_set is not None:
        evaluator = Evaluator(config, loaded.assembly, partitioned, loaded.test_set, around)
        cadences.append(Evaluate(config, evaluator, saver, state.totals, around, log=log, forecast=forecast))
    cadences.append(Describe(forecast, around))
    tracer = Tracer(options.profile, around)
    # the first and the last, so that no other's work is in the trace but what comes between its steps
    cadences.insert(0, EndTrace(tracer))
    return [*cadences, SaveEvery(saver, options.checkpoint_every_steps), StopWhenAsked(around), BeginTrace(tracer)]
