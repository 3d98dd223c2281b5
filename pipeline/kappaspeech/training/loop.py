"""The training loop: steps, cadence of checkpoints and evaluations, stopping by agreement."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from kappaspeech.config.run_config import RunConfig
from kappaspeech.errors import TrainingError
from kappaspeech.escaping import make_logger
from kappaspeech.evaluation.evaluate import TestSet, evaluate
from kappaspeech.model.flops import speech_cost
from kappaspeech.progress import ProgressBar
from kappaspeech.ranks.agreement import agree, agreement
from kappaspeech.ranks.cluster import Cluster
from kappaspeech.ranks.liveness import Watch
from kappaspeech.speech.batches import SpeechBatch
from kappaspeech.speech.stream import SpeechStream, StepData
from kappaspeech.training import checkpoint as checkpoints
from kappaspeech.training.bad_steps import BadStep, BadSteps
from kappaspeech.training.base_partitions import BasePartitions, averaged_weights
from kappaspeech.training.best import best_wer, mark_best
from kappaspeech.training.encoding import ClipEncoder
from kappaspeech.training.engine import MicroBatch, TrainingEngine
from kappaspeech.training.forecast import Forecast
from kappaspeech.training.lease import Lease
from kappaspeech.training.measuring import make_transcriber
from kappaspeech.training.phases import PhaseClock
from kappaspeech.training.run_folder import RunFolder
from kappaspeech.training.run_log import RunLog, StepRecord
from kappaspeech.training.saved_state import find_fault
from kappaspeech.training.schedule import rate_factor
from kappaspeech.training.speed import count_work
from kappaspeech.training.stopping import StopRequest
from kappaspeech.training.tally import RankShare, Tally

if TYPE_CHECKING:
    from kappaspeech.training.parts import Parts

_log = make_logger(__name__)


@dataclass(frozen=True)
class Outcome:
    """How a run ended: `status` is «finished», or «resumable» with the reason why it stopped early."""

    status: str
    step: int
    reason: str | None
    run_dir: str


class TrainingLoop:
    """Runs a configuration's steps from wherever its folder's last checkpoint stands."""

    def __init__(
        self,
        config: RunConfig,
        *,
        cluster: Cluster,
        engine: TrainingEngine,
        phases: PhaseClock,
        stop: StopRequest,
        watch: Watch,
        parts: Parts,
        folder: RunFolder,
        lease: Lease,
        fingerprints: Mapping[str, str],
        stream: SpeechStream,
        test_set: TestSet | None,
        peak_flops_per_second: float,
        encoder: ClipEncoder,
    ) -> None:
        self._config = config
        self._cluster = cluster
        self._engine = engine
        self._phases = phases
        self._parts = parts
        self._folder = folder
        self._lease = lease
        self._stream = stream
        self._test_set = test_set
        # before anything is restored
        reads_text = config.evaluation.decode != "replica" and test_set is not None and bool(config.data.text)
        self._base = BasePartitions(engine) if reads_text else None
        self._fingerprints = {**fingerprints, "data": stream.fingerprint}
        self._hint = (0, 0)
        self._tally = Tally(num_samples=stream.num_samples, max_bad_fraction=config.data.max_bad_fraction)
        self._log: RunLog | None = None
        self._saved_step = 0
        self._bad_steps = BadSteps(config.training)
        self._forecast = Forecast(config.training)
        self._stop = stop
        self._watch = watch
        self._encoder = encoder
        # of all ranks' devices together
        self._peak_flops_per_second = peak_flops_per_second
        num_prompt_tokens = parts.prompt.prefix_ids.numel() + parts.prompt.suffix_ids.numel()
        self._cost = speech_cost(parts.encoder, parts.model, num_prompt_tokens=num_prompt_tokens)

    def run(self) -> Outcome:
        """Train to `num_steps`, or until all ranks agree to stop early. A collective."""
        try:
            try:
                return self._run()
            finally:
                if self._log is not None:
                    # what is still to be written may be what a full disk refuses
                    self._log.close()
        except OSError as error:
            raise TrainingError(
                f"{self._folder.path} can't be used on {socket.gethostname()}: {error}. Make room or mend the disk, and start "
                "the same command again: it goes on from the last checkpoint."
            ) from error

    def _run(self) -> Outcome:
        total = self._config.training.num_steps
        step = self._resume()
        with agreement(self._cluster):
            if self._cluster.rank == 0:
                self._log = RunLog(self._folder.path, resume_step=step, check=self._lease.check)
        evaluated = self._cluster.broadcast(self._log.evaluated_steps() if self._log else None)
        with self._stop, ProgressBar("train", total=total, done=step, shown=self._cluster.rank == 0) as bar:
            # a stop during the evaluation of this step, or a first start, leaves it owing
            reason = None if step in evaluated else self._evaluate_if_due(step)
            steps = self._stream.steps(step, hint=self._hint)
            while step < total and reason is None:
                self._watch.check()
                self._phases.begin_step(step)
                self._phases.take_seconds()
                data, num_tokens, reason = self._fetch(steps)
                if reason is not None:
                    break
                record = self._step(data, num_tokens)
                step, self._hint = data.global_step + 1, data.hint
                self._tally.check_bad_samples()
                bar.advance(detail=_describe(record))
                if record is not None and (told := self._forecast.time_step(record.seconds, step)) is not None:
                    bar.say(told)
                reason = self._keep_cadence(step)
            steps.close()
            self._save(step)
            self._phases.end_steps()
        if reason is None:
            return Outcome("finished", step, None, str(self._folder.path))
        with agreement(self._cluster):
            if self._cluster.rank == 0:
                self._stop.clear_file()
        return Outcome("resumable", step, reason, str(self._folder.path))

    def _fetch(self, steps: Iterator[StepData]) -> tuple[StepData, int, str | None]:
        """This rank's data for the next step, the target tokens of all ranks, and why to stop before it, if any rank wants to.

        A collective, and the only one before the step: what one rank can't read doesn't leave the others waiting.
        """
        fetched: list[StepData] = []

        def fetch() -> tuple[int, str | None]:
            self._phases.enter("data")
            fetched.append(next(steps))
            self._phases.name_samples(fetched[0].keys)
            self._phases.enter("exchange")
            return sum(batch.num_target_tokens for batch in fetched[0].batches), self._stop.reason()

        tokens, wishes = zip(*agree(self._cluster, fetch), strict=True)
        return fetched[0], sum(tokens), _first_wish(wishes)

    def _agree_to_stop(self) -> str | None:
        """The reason, if any rank has one, to stop here; the same on all. A collective."""
        return _first_wish(self._cluster.gather(self._stop.reason()))

    def _wants_to_stop(self) -> bool:
        """In the middle of what ranks do without each other: a sign of life, and whether any rank wishes to stop."""
        self._phases.tick()
        self._watch.check()
        return self._stop.reason() is not None or any(post.get("wish") for post in self._watch.posts)

    def _resume(self) -> int:
        """The step to go on with: that of the last checkpoint, restored; else 0."""
        last, state = None, {}
        with agreement(self._cluster):
            if (
                self._cluster.rank == 0
                and (last := checkpoints.prepare_resume(self._folder.checkpoints, find_fault=find_fault)) is not None
            ):
                state = checkpoints.read_state(last)
                checkpoints.check_fingerprints(last, state["fingerprints"], self._fingerprints)
        name, state = self._cluster.broadcast((last and last.name, state))
        if name is None:
            return 0
        self._bad_steps.restore(state["bad_steps"])
        num_updates = state["step"] - self._bad_steps.num_skipped
        checkpoints.restore(self._engine, self._folder.checkpoints / name, self._cluster, num_updates=num_updates)
        self._saved_step = state["step"]
        self._hint = (state["hint"][0], state["hint"][1])
        self._tally.restore(state)
        return int(state["step"])

    def _step(self, data: StepData, num_tokens: int) -> StepRecord | None:
        """One optimizer step on all ranks; None for a bad one, which is left out."""
        config = self._config
        rates = self._engine.set_rates(
            rate_factor(data.global_step, num_steps=config.training.num_steps, config=config.optimizer)
        )
        first = data.global_step * config.batch.micro_batches_per_step + self._cluster.rank
        result = self._engine.step(
            self._encode(data.batches),
            prefix_ids=self._parts.prompt.prefix_ids,
            suffix_ids=self._parts.prompt.suffix_ids,
            num_target_tokens=num_tokens,
            seeds=[config.seed + first + i * self._cluster.world_size for i in range(len(data.batches))],
            norm_limit=self._bad_steps.norm_limit,
        )
        work = count_work(self._cost, data.batches)
        self._phases.enter("exchange")
        share = RankShare.of(data, loss_sum_nats=result.loss_sum_nats, work=work)
        shares = self._cluster.gather(share)
        self._phases.enter("rest")
        phase_seconds = self._phases.take_seconds()
        self._tally.add(shares, seconds=sum(phase_seconds.values()))
        if self._log is not None:
            self._log.add_bad_samples(data.global_step, [item for share in shares for item in share.data.bad_samples])
        bad_step = self._bad_steps.judge(
            data.global_step,
            result,
            loss_sum_nats=sum(share.loss_sum_nats for share in shares),
            keys=[key for share in shares for key in share.keys],
        )
        if bad_step is not None:
            self._skip(bad_step)
            return None
        record = self._tally.record(
            shares,
            num_target_tokens=num_tokens,
            learning_rates=rates,
            grad_norm=result.grad_norm,
            phase_seconds=phase_seconds,
            peak_flops_per_second=self._peak_flops_per_second,
        )
        if self._log is not None:
            self._log.add_step(record)
        return record

    def _encode(self, batches: Sequence[SpeechBatch]) -> Iterator[MicroBatch]:
        """Each micro-batch with its encoder states, made when it is asked for: at 1500 s of audio they are 192 MB."""
        for batch in batches:
            self._phases.enter("encoder")
            yield MicroBatch(*self._encoder.encode(batch), batch.label_ids)

    def _skip(self, bad: BadStep) -> None:
        """Record a bad step; raise `TrainingError`, alike on every rank, where the run can't go on."""
        if self._log is not None:
            self._log.add_skipped_step(bad.record)
        if bad.why_stop is not None:
            raise TrainingError(bad.why_stop)
        if self._log is not None:
            _log.warning("Step %d is skipped: gradient norm %s.", bad.record["step"], bad.record["grad_norm"] or "not finite")

    def _keep_cadence(self, step: int) -> str | None:
        """Evaluate and save where it is time to; the reason, if there is one, to stop. A collective."""
        cadence = self._config.training
        if step >= cadence.num_steps:
            # the last evaluation may be long: what was trained is safe before
            self._save(step)
        reason = self._evaluate_if_due(step)
        if cadence.checkpoint_every_steps and step % cadence.checkpoint_every_steps == 0:
            self._save(step)
        return reason

    def _save(self, step: int) -> None:
        """Save the state after `step` steps, unless it has been. A collective."""
        if step == self._saved_step:
            return
        self._phases.enter("checkpoint")
        with agreement(self._cluster):
            self._lease.check()
        state = {
            "world_size": self._cluster.world_size,
            "fingerprints": self._fingerprints,
            "hint": list(self._hint),
            "bad_steps": self._bad_steps.to_json(),
            **self._tally.to_json(),
        }
        keep = self._config.training.keep_checkpoints
        checkpoints.save(
            self._engine,
            self._cluster,
            self._folder.checkpoints,
            step=step,
            state=state,
            keep=keep,
            on_progress=self._phases.tick,
        )
        self._saved_step = step

    def _evaluate_if_due(self, step: int) -> str | None:
        """Evaluate before the first step, after the last, and between as often as is configured.

        A wish to stop cuts it short: its reason is returned, nothing is recorded, and the next start evaluates. A collective.
        """
        cadence = self._config.training
        due = step in (0, cadence.num_steps) or (cadence.evaluate_every_steps and step % cadence.evaluate_every_steps == 0)
        due = self._has_passed_minutes() or due
        if self._test_set is None or not due:
            return None
        record = self._evaluate(step, self._test_set)
        if record is None:
            return self._agree_to_stop()
        if self._log is not None:
            self._log.add_evaluation(record)
        self._keep_if_best(step, record["wer"]["mean_wer"])
        return None

    def _has_passed_minutes(self) -> bool:
        """Whether the last step crossed a multiple of `evaluate_every_minutes` of training, by rank 0's clock. A collective."""
        minutes = self._config.training.evaluate_every_minutes
        if minutes is None:
            return False
        return bool(self._cluster.broadcast(self._tally.has_passed(minutes)))

    def _keep_if_best(self, step: int, mean_wer: float | None) -> None:
        """Save and mark a checkpoint that is better than all before. A collective."""
        best = self._cluster.broadcast(best_wer(self._folder.checkpoints) if self._cluster.rank == 0 else None)
        if step == 0 or not self._config.training.keep_best or mean_wer is None or mean_wer >= best:
            return
        self._save(step)
        with agreement(self._cluster):
            if self._cluster.rank == 0:
                mark_best(self._folder.checkpoints, step=step, mean_wer=mean_wer)

    def _evaluate(self, step: int, test_set: TestSet) -> dict[str, Any] | None:
        """Measure the model as it now is; None where a wish to stop cut it short."""
        self._phases.enter("evaluation")
        began = time.monotonic()
        with averaged_weights(self._engine):
            transcriber = make_transcriber(self._engine, self._parts, self._config, self._cluster, base=self._base)
            path = self._folder.hypotheses / f"step-{step:06d}.jsonl"
            record = evaluate(
                transcriber,
                test_set,
                cluster=self._cluster,
                hypotheses_path=path,
                step=step,
                train_seconds=self._tally.train_seconds,
                wants_to_stop=self._wants_to_stop,
            )
        self._forecast.time_evaluation(began)
        return record


def _describe(record: StepRecord | None) -> str:
    return f"loss {record.loss_nats:.3f}, {record.audio_seconds_per_second:.3g} audio-s/s" if record else "skipped"


def _first_wish(wishes: Sequence[str | None]) -> str | None:
    """The lowest rank's reason to stop, of those that have one."""
    return next((f"{why} on rank {rank}" for rank, why in enumerate(wishes) if why), None)
