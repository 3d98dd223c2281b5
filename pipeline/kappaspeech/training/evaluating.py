"""Evaluations of a run: before the first step, after the last, and between as often as is configured."""

from __future__ import annotations

import time
from typing import Any

from kappaspeech.config.run_config import RunConfig
from kappaspeech.evaluation.evaluate import TestSet, evaluate
from kappaspeech.runs.best import best_wer
from kappaspeech.runs.contents import hypotheses_path
from kappaspeech.runs.records import RunLog
from kappaspeech.training.assembly import Assembly
from kappaspeech.training.cadence import Cadence
from kappaspeech.training.forecast import Forecast
from kappaspeech.training.partitioned import Partitioned
from kappaspeech.training.replica_or_zero3 import make_transcriber
from kappaspeech.training.saving import Saver
from kappaspeech.training.stopping import first_wish
from kappaspeech.training.surroundings import Surroundings
from kappaspeech.training.totals import Totals
from kappaspeech.zero3.weight_swap import averaged_weights


class Evaluator:
    """Measures the model in its present state: with its moving average, if one is kept."""

    def __init__(
        self, config: RunConfig, assembly: Assembly, partitioned: Partitioned, test_set: TestSet, around: Surroundings
    ) -> None:
        self._config = config
        self._assembly = assembly
        self._partitioned = partitioned
        self._test_set = test_set
        self._around = around

    def measure(self, step: int, *, train_seconds: float) -> dict[str, Any] | None:
        """The record of an evaluation after `step` steps; None if a wish to stop cut it short. A collective."""
        engine, cluster = self._partitioned.engine, self._around.cluster
        self._around.phases.enter("evaluation")
        with averaged_weights(engine):
            transcriber = make_transcriber(engine, self._assembly, self._config, cluster, base=self._partitioned.base)
            return evaluate(
                transcriber,
                self._test_set,
                cluster=cluster,
                hypotheses_path=hypotheses_path(self._around.folder.hypotheses, step),
                step=step,
                train_seconds=train_seconds,
                wants_to_stop=self._around.wants_to_stop,
            )


class Evaluate(Cadence):
    """Evaluates, once the checkpoint before is whole, records, and keeps the checkpoint of lowest WER.

    A wish to stop cuts it short: its reason is returned, nothing is recorded, and the next start evaluates.
    """

    def __init__(
        self,
        config: RunConfig,
        evaluator: Evaluator,
        saver: Saver,
        totals: Totals,
        around: Surroundings,
        *,
        log: RunLog | None,
        forecast: Forecast,
    ) -> None:
        self._options = config.training
        self._evaluator = evaluator
        self._saver = saver
        self._totals = totals
        self._around = around
        self._log = log
        self._forecast = forecast

    def begin(self, step: int) -> str | None:
        evaluated = self._around.cluster.broadcast(self._log.evaluated_steps() if self._log else None)
        # due after a stop during the evaluation of this step, or at a first start
        return None if step in evaluated else self.after(step)

    def after(self, step: int) -> str | None:
        options, cluster = self._options, self._around.cluster
        due = step in (0, options.num_steps) or (options.evaluate_every_steps and step % options.evaluate_every_steps == 0)
        if not (self._has_passed_minutes() or due):
            return None
        self._saver.finish()
        began = time.monotonic()
        record = self._evaluator.measure(step, train_seconds=self._totals.train_seconds)
        self._forecast.time_evaluation(began)
        if record is None:
            return first_wish(cluster.gather(self._around.stop.reason()))
        if self._log is not None:
            self._log.add_evaluation(record)
        self._keep_if_best(step, record["wer"]["mean_wer"])
        return None

    def _has_passed_minutes(self) -> bool:
        """Return whether the last step crossed a multiple of `evaluate_every_minutes`, by rank 0's clock. A collective."""
        minutes = self._options.evaluate_every_minutes
        if minutes is None:
            return False
        return bool(self._around.cluster.broadcast(self._totals.has_passed(minutes)))

    def _keep_if_best(self, step: int, mean_wer: float | None) -> None:
        """Save and mark a checkpoint that is better than all before. A collective."""
        cluster, folder = self._around.cluster, self._around.folder.checkpoints
        best = cluster.broadcast(best_wer(folder) if self._around.is_writer else None)
        if step == 0 or not self._options.keep_best or mean_wer is None or mean_wer >= best:
            return
        self._saver.save(step, best_wer=mean_wer)
