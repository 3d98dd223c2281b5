"""The training loop: steps until there are enough, or until all ranks agree to stop early, and cadences beside them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

from kappaspeech.progress import ProgressBar
from kappaspeech.ranks.agreement import agree
from kappaspeech.runs.records import StepRecord
from kappaspeech.speech.stream import SpeechStream, StepData
from kappaspeech.training.cadence import Cadence
from kappaspeech.training.forecast import Forecast
from kappaspeech.training.loop_state import LoopState
from kappaspeech.training.stopping import first_wish
from kappaspeech.training.surroundings import Surroundings

TakeStep = Callable[[StepData, int], StepRecord | None]


@dataclass(frozen=True)
class Outcome:
    """The end of a run: `status` is "finished", or "resumable" with the reason why it stopped early."""

    status: str
    step: int
    reason: str | None
    run_dir: str


class TrainingLoop:
    """The loop that takes a run's steps one after another. Work beside them is the cadences'."""

    def __init__(
        self,
        stream: SpeechStream,
        take_step: TakeStep,
        state: LoopState,
        around: Surroundings,
        *,
        cadences: Sequence[Cadence],
        forecast: Forecast,
    ) -> None:
        """`take_step` is given a step's data and the target tokens of all ranks; it returns None for a bad step."""
        self._stream = stream
        self._take_step = take_step
        self._state = state
        self._around = around
        self._cadences = cadences
        self._forecast = forecast

    def run(self, step: int, total: int) -> Outcome:
        """Train from `step` to `total`, or until all ranks agree to stop early. A collective."""
        phases, work = self._around.phases, self._forecast.work
        with ExitStack() as opened:
            for cadence in self._cadences:
                opened.enter_context(cadence)
            bar = opened.enter_context(ProgressBar("train", total=work(total), done=work(step), shown=self._around.is_writer))
            reason = _first([cadence.begin(step) for cadence in self._cadences])
            steps = self._stream.steps(step, hint=self._state.hint)
            while step < total and reason is None:
                self._around.watch.check()
                phases.begin_step(step)
                phases.take_seconds()
                data, num_tokens, reason = self._fetch(steps)
                if reason is not None:
                    break
                record = self._take_step(data, num_tokens)
                step, self._state.hint = data.global_step + 1, data.hint
                self._state.totals.check_bad_samples()
                bar.advance(work(step) - work(step - 1), detail=_describe(record))
                if record is not None and (told := self._forecast.time_step(record.seconds, step)) is not None:
                    bar.say(told)
                reason = _first([cadence.after(step) for cadence in self._cadences])
            steps.close()
            for cadence in self._cadences:
                cadence.end(step, reason)
            phases.end_steps()
        return Outcome("finished" if reason is None else "resumable", step, reason, str(self._around.folder.path))

    def _fetch(self, steps: Iterator[StepData]) -> tuple[StepData, int, str | None]:
        """Get this rank's data for the next step, the target tokens of all ranks, and any rank's reason to stop before it.

        A collective, and the only one before the step: data that one rank can't read doesn't leave the others waiting.
        """
        phases = self._around.phases
        fetched: list[StepData] = []

        def fetch() -> tuple[int, str | None]:
            phases.enter("data")
            fetched.append(next(steps))
            phases.name_samples(fetched[0].keys)
            phases.enter("exchange")
            wish = _first([cadence.wish() for cadence in self._cadences])
            return sum(batch.num_target_tokens for batch in fetched[0].batches), wish

        tokens, wishes = zip(*agree(self._around.cluster, fetch), strict=True)
        return fetched[0], sum(tokens), first_wish(wishes)


def _describe(record: StepRecord | None) -> str:
    if record is None:
        return "skipped"
    loss = "alignment loss" if record.objective == "alignment" else "loss"
    return f"{loss} {record.loss_nats:.3f}, {record.audio_seconds_per_second:.3g} audio-s/s"


def _first(reasons: Sequence[str | None]) -> str | None:
    return next((reason for reason in reasons if reason is not None), None)
