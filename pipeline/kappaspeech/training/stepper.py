"""One optimizer step of a run: from a step's data to its record."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from kappaspeech.config.run_config import RunConfig
from kappaspeech.errors import TrainingError
from kappaspeech.escaping import make_logger
from kappaspeech.model.flops import speech_cost
from kappaspeech.model.text_rows import TextRows, pad_texts
from kappaspeech.runs.records import RunLog, StepRecord
from kappaspeech.speech.batches import SpeechBatch
from kappaspeech.speech.stream import StepData
from kappaspeech.training.bad_steps import BadStep
from kappaspeech.training.learning_rate import rate_factor
from kappaspeech.training.loaded import Loaded
from kappaspeech.training.loop_state import LoopState
from kappaspeech.training.partitioned import Partitioned
from kappaspeech.training.surroundings import Surroundings
from kappaspeech.training.throughput import count_work
from kappaspeech.training.totals import RankShare
from kappaspeech.zero3.engine import MicroBatch

_log = make_logger(__name__)


class Stepper:
    """Takes steps, adds them to the loop's state, and records them if this rank has a log."""

    def __init__(
        self,
        config: RunConfig,
        loaded: Loaded,
        partitioned: Partitioned,
        state: LoopState,
        around: Surroundings,
        *,
        log: RunLog | None,
    ) -> None:
        assembly = loaded.assembly
        self._config = config
        self._prompt = assembly.prompt
        self._replay = loaded.replay
        self._anchor = partitioned.anchor
        self._engine = partitioned.engine
        self._encoder = partitioned.encoder
        self._state = state
        self._around = around
        self._log = log
        # the sum over all ranks' devices
        self._peak_flops_per_second = sum(partitioned.matmul_rates)
        self._cost = speech_cost(assembly.encoder, assembly.model, num_prompt_tokens=assembly.prompt.num_tokens)
        self._alignment_cost = self._cost.without_llm()

    def step(self, data: StepData, num_tokens: int) -> StepRecord | None:
        """One optimizer step on all ranks; None for a bad one, which is left out."""
        config = self._config
        self._state.bad_steps.begin(data.global_step)
        options, is_alignment = config.training, data.global_step < config.training.alignment_steps
        rates = self._engine.set_rates(
            rate_factor(
                data.global_step,
                num_steps=options.num_steps,
                config=config.optimizer,
                alignment_steps=options.alignment_steps,
            )
        )
        first = data.global_step * config.batch.micro_batches_per_step + self._around.cluster.rank
        texts = self._choose_texts(data.global_step, len(data.batches))
        result = self._engine.step(
            self._encode(data.batches, [self._read(places, data.global_step, num_tokens) for places in texts]),
            prefix_ids=self._prompt.prefix_ids,
            suffix_ids=self._prompt.suffix_ids,
            num_target_tokens=num_tokens,
            seeds=[config.seed + first + i * self._around.cluster.world_size for i in range(len(data.batches))],
            norm_limit=self._state.bad_steps.norm_limit,
            alignment_only=is_alignment,
        )
        pieces = [len(self._replay.pieces[place]) for places in texts for place in places] if self._replay else []
        cost = self._alignment_cost if is_alignment else self._cost
        work = count_work(cost, data.batches, prompt=self._prompt, texts=pieces, anchored=self._anchor is not None)
        self._around.phases.enter("exchange")
        share = RankShare.of(data, result, work=work)
        shares = self._around.cluster.gather(share)
        self._around.phases.enter("rest")
        phase_seconds = self._around.phases.take_seconds()
        self._state.totals.add(shares, seconds=sum(phase_seconds.values()))
        if self._log is not None:
            self._log.add_bad_samples(data.global_step, [item for share in shares for item in share.data.bad_samples])
        bad_step = self._state.bad_steps.judge(
            data.global_step,
            result,
            loss_sum_nats=sum(share.loss_sum_nats for share in shares),
            keys=[key for share in shares for key in share.keys],
        )
        if bad_step is not None:
            self._skip(bad_step)
            return None
        record = self._state.totals.record(
            shares,
            num_target_tokens=num_tokens,
            num_replayed_tokens=self._replay.num_tokens(data.global_step) if self._replay and not is_alignment else 0,
            is_anchored=self._anchor is not None,
            # the LLM's tensors don't move by theirs while the adaptor is aligned alone
            learning_rates=rates | {"llm": 0.0} if is_alignment and "llm" in rates else rates,
            grad_norm=result.grad_norm,
            objective="alignment" if is_alignment else "transcript",
            phase_seconds=phase_seconds,
            peak_flops_per_second=self._peak_flops_per_second,
        )
        if self._log is not None:
            self._log.add_step(record)
        return record

    def _encode(self, batches: Sequence[SpeechBatch], texts: Sequence[TextRows | None]) -> Iterator[MicroBatch]:
        """Each micro-batch with its encoder states, made on demand: at 1500 s of audio they are 192 MB."""
        for batch, text in zip(batches, texts, strict=True):
            self._around.phases.enter("encoder")
            yield MicroBatch(
                *self._encoder.encode(batch), batch.label_ids, text, self._prompt.around(batch.instructions, batch.hot_ids)
            )

    def _choose_texts(self, step: int, num_batches: int) -> list[list[int]]:
        """The places of the pieces of text beside each of this rank's micro-batches; none while the adaptor is aligned alone."""
        rank, world_size = self._around.cluster.rank, self._around.cluster.world_size
        if self._replay is None or step < self._config.training.alignment_steps:
            return [[]] * num_batches
        number = self._config.batch.micro_batches_per_step
        return [
            self._replay.of_micro_batch(step, rank + i * world_size, micro_batches_per_step=number) for i in range(num_batches)
        ]

    def _read(self, places: Sequence[int], step: int, num_tokens: int) -> TextRows | None:
        """These pieces as rows. Their sums are divided by their own tokens, and all is divided by the transcripts' later on."""
        options = self._config.replay
        if self._replay is None or options is None or not places:
            return None
        scale = max(num_tokens, 1) / self._replay.num_tokens(step)
        return TextRows(
            pad_texts([self._replay.pieces[place] for place in places]),
            options.weight * scale,
            self._state.anchor_weight.value * scale,
            self._anchor.keep(places, self._engine.device) if self._anchor else None,
        )

    def _skip(self, bad: BadStep) -> None:
        """Record a bad step; raise `TrainingError`, alike on every rank, if the run can't continue."""
        if self._log is not None:
            self._log.add_skipped_step(bad.record)
        if bad.why_stop is not None:
            raise TrainingError(bad.why_stop)
        if self._log is not None:
            _log.warning("Step %d is skipped: gradient norm %s.", bad.record["step"], bad.record["grad_norm"] or "not finite")
