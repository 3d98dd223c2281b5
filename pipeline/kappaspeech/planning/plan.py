"""The plan of a run: memory of a rank by part and phase, time a step, whether it fits, and what would make it fit."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from kappaspeech.config.run_config import RunConfig
from kappaspeech.model.flops import SpeechCost
from kappaspeech.model.recomputation import count_recomputed, most_recomputed
from kappaspeech.planning.batches import BatchSizes
from kappaspeech.planning.duration import Rates, StepTime, StepWork, predict_alignment, predict_step
from kappaspeech.planning.evaluation_memory import TextLengths, count_evaluation
from kappaspeech.planning.kept_memory import count_kept, read_kept
from kappaspeech.planning.memory import (
    MemoryPart,
    ReplayedTexts,
    ZeroSettings,
    count_activations,
    count_checkpoint_copy,
    count_live,
    count_state,
    count_tokens,
    count_update,
)
from kappaspeech.planning.sizes import SpeechSizes

SCHEMA_VERSION = 1
GB = 1_000_000_000
# Not measured here, for want of a GPU: CUDA's context, NCCL's channels and cuBLAS's workspace; and what the allocator loses.
GPU_CONTEXT_BYTES = 2 * GB
GPU_FRAGMENTATION = 0.06
# The resident set of a rank that has imported everything and loaded no model yet (torch 2.13, on a CPU).
HOST_BASE_BYTES = 545 * (1 << 20)
# What glibc keeps beyond what is counted, since it gives nothing back (`keep_freed_memory`): evaluations' replicas and batches of
# all lengths leave holes. At the quickstart's end a rank's heap was 2.1 times what is counted in bfloat16, 1.8 in float32.
HOST_FRAGMENTATION = 1.15
# What is chosen by the plan leaves this much of the memory for what the plan doesn't know.
_AUTO_SHARE = 0.9
# How far steps have been from the plan on processors, whose speed was measured; and how far GPUs may be, whose speed is assumed.
MEASURED_RANGE = (0.8, 1.5)
ASSUMED_RANGE = (0.7, 2.0)


@dataclass(frozen=True)
class Assumptions:
    """The assumptions of a plan. `encoded_share` of the clips meet the encoder; the others' states are in the cache.

    `memory_bytes` are those of a rank's device, if they are known. `anchored_tokens` are those of which an anchor, if there is
    one, keeps the base's states.
    """

    world_size: int
    device: Literal["gpu", "cpu"]
    rates: Rates
    prompt_tokens: int
    batches: BatchSizes
    encoded_share: float = 1.0
    memory_bytes: int | None = None
    texts: TextLengths | None = None
    anchored_tokens: int = 0


@dataclass(frozen=True)
class Plan:
    """`parts` lie in a rank's memory all the time, `step_parts` at a step's widest point; `evaluation_bytes` and `update_bytes`
    come in their place in an evaluation and in the optimizer's step. `overhead_bytes` is outside of what torch allocates.
    `checkpoint_copy_bytes` of host memory come to them while a checkpoint is written, if they are there: if not, the steps wait.
    `num_recomputed` of the LLM's layers are computed again. `keeps_frozen`: frozen weights of any size stay whole."""

    assumptions: Assumptions
    parts: tuple[MemoryPart, ...]
    step_parts: tuple[MemoryPart, ...]
    evaluation_bytes: int
    decodes_by: Literal["replica", "zero3", "auto"]
    update_bytes: int
    checkpoint_copy_bytes: int
    step_time: StepTime
    audio_seconds_per_step: float
    micro_batches_per_step: int
    num_recomputed: int
    keeps_frozen: bool
    num_steps: int
    alignment_steps: int
    """Of the steps, those that align the adaptor alone."""
    alignment_seconds: float
    """Seconds of such a step."""

    def fits(self, gpu_memory_gb: float) -> bool:
        """True if a device of this many GB holds a rank."""
        return self.peak_bytes <= gpu_memory_gb * GB

    @property
    def idle_share(self) -> float:
        """The share of all ranks' passes that have no micro-batch."""
        rounds = -(-self.micro_batches_per_step // self.assumptions.world_size)
        return 1 - self.micro_batches_per_step / (rounds * self.assumptions.world_size)

    @property
    def state_bytes(self) -> int:
        return sum(part.num_bytes for part in self.parts if self._counts(part))

    @property
    def step_bytes(self) -> int:
        """The bytes that are allocated at a step's widest point."""
        return self.state_bytes + max(sum(part.num_bytes for part in self.step_parts if self._counts(part)), self.update_bytes)

    @property
    def allocated_bytes(self) -> int:
        """The most that is allocated at any time. On a GPU, "auto" takes no replica if there is no room for one."""
        replica = self.decodes_by == "replica" or (self.decodes_by == "auto" and self.assumptions.device == "cpu")
        return max(self.step_bytes, self.state_bytes + self.evaluation_bytes if replica else 0)

    @property
    def overhead_bytes(self) -> int:
        if self.assumptions.device == "cpu":
            return HOST_BASE_BYTES + int(HOST_FRAGMENTATION * self.allocated_bytes)
        return GPU_CONTEXT_BYTES + int(GPU_FRAGMENTATION * self.allocated_bytes)

    @property
    def peak_bytes(self) -> int:
        """The most that a rank needs of its device's memory."""
        return self.allocated_bytes + self.overhead_bytes

    @property
    def least_bytes(self) -> int:
        """`peak_bytes` if the allocator loses nothing: the lower end of what a rank needs."""
        base = HOST_BASE_BYTES if self.assumptions.device == "cpu" else GPU_CONTEXT_BYTES
        return self.allocated_bytes + base

    @property
    def run_seconds(self) -> tuple[float, float]:
        """The least and the most seconds of all steps together, evaluations and checkpoints aside."""
        low, high = MEASURED_RANGE if self.assumptions.rates.are_measured else ASSUMED_RANGE
        aligning = self.alignment_steps * self.alignment_seconds
        seconds = (self.num_steps - self.alignment_steps) * self.step_time.total + aligning
        return low * seconds, high * seconds

    @property
    def host_bytes(self) -> int:
        """The part of a rank's state that lies in its host's memory beside its GPU."""
        return sum(part.num_bytes for part in self.parts if not self._counts(part))

    def _counts(self, part: MemoryPart) -> bool:
        return self.assumptions.device == "cpu" or not part.on_host

    def to_json(self) -> dict[str, Any]:
        return {
            "schema_version": SCHEMA_VERSION,
            "assumptions": asdict(self.assumptions),
            "parts": [asdict(part) for part in (*self.parts, *self.step_parts)],
            "state_bytes": self.state_bytes,
            "step_bytes": self.step_bytes,
            "evaluation_bytes": self.evaluation_bytes,
            "decodes_by": self.decodes_by,
            "allocated_bytes": self.allocated_bytes,
            "overhead_bytes": self.overhead_bytes,
            "peak_bytes": self.peak_bytes,
            "least_bytes": self.least_bytes,
            "host_bytes": self.host_bytes,
            "checkpoint_copy_bytes": self.checkpoint_copy_bytes,
            "step_seconds": asdict(self.step_time),
            "alignment_seconds": self.alignment_seconds,
            "run_seconds": list(self.run_seconds),
            "audio_seconds_per_step": self.audio_seconds_per_step,
            "idle_share": self.idle_share,
            "num_recomputed_layers": self.num_recomputed,
            "keeps_frozen": self.keeps_frozen,
        }


def make_plan(config: RunConfig, settings: ZeroSettings, sizes: SpeechSizes, cost: SpeechCost, assumptions: Assumptions) -> Plan:
    """Plan `config` on `assumptions`. `cost` and `sizes` are of the same modules.

    The memory settles what `config` leaves to it: no more layers are computed again than it takes to fit, or all that help if
    the memory isn't known; and frozen weights stay whole if there is room left.
    """
    num_recomputed = _choose_recomputed(config, settings, sizes, cost, assumptions)
    made = _make_plan(config, settings, sizes, cost, assumptions, num_recomputed=num_recomputed)
    if settings.may_keep_frozen and assumptions.memory_bytes is not None:
        whole = replace(settings, keeps_frozen=True)
        keeping = _make_plan(config, whole, sizes, cost, assumptions, num_recomputed=num_recomputed)
        if keeping.peak_bytes <= _AUTO_SHARE * assumptions.memory_bytes:
            return keeping
    return made


def _choose_recomputed(
    config: RunConfig, settings: ZeroSettings, sizes: SpeechSizes, cost: SpeechCost, assumptions: Assumptions
) -> int:
    wanted, num_layers = config.training.activation_checkpointing, sizes.llm.num_layers
    if wanted != "auto":
        return count_recomputed(wanted, num_layers=num_layers)
    most = most_recomputed(num_layers)
    if assumptions.memory_bytes is None:
        return most

    def count_peak(num_recomputed: int) -> int:
        return _make_plan(config, settings, sizes, cost, assumptions, num_recomputed=num_recomputed).peak_bytes

    # an evaluation may need more than any step
    room = max(_AUTO_SHARE * assumptions.memory_bytes, count_peak(most))
    return next(number for number in range(most + 1) if count_peak(number) <= room)


def _make_plan(
    config: RunConfig,
    settings: ZeroSettings,
    sizes: SpeechSizes,
    cost: SpeechCost,
    assumptions: Assumptions,
    *,
    num_recomputed: int,
) -> Plan:
    world_size, batches = assumptions.world_size, assumptions.batches
    num_micro_batches, mean = config.batch.micro_batches_per_step, batches.mean
    per_rank = -(-num_micro_batches // world_size)
    if config.batch.even_shares:
        mean = mean.scaled(num_micro_batches / (per_rank * world_size))
        num_micro_batches = per_rank * world_size
    replayed = _replayed_texts(config)
    # memory must hold the micro-batch that has one text more than others
    most = replace(replayed, num_texts=math.ceil(replayed.num_texts)) if replayed else None
    tokens = count_tokens(batches.largest, sizes, prompt_tokens=assumptions.prompt_tokens, replayed=most)
    activations = count_activations(sizes, settings, tokens, num_recomputed=num_recomputed)
    live = MemoryPart("gathered weights", count_live(sizes, settings, world_size=world_size, num_recomputed=num_recomputed))
    kept = read_kept(config, anchored_tokens=assumptions.anchored_tokens)
    evaluation = 0
    if config.data.test:
        evaluation = count_evaluation(
            sizes,
            settings,
            num_clips=config.evaluation.batch_size,
            clip_seconds=batches.largest.clip_seconds,
            new_tokens=config.evaluation.max_new_tokens + assumptions.prompt_tokens,
            num_beams=config.evaluation.num_beams,
            texts=assumptions.texts,
        )
    state = count_state(sizes, settings, world_size=world_size, on_cpu=assumptions.device == "cpu")
    work = StepWork(cost, sizes, settings, mean, micro_batches_per_rank=per_rank, world_size=world_size)
    step_time = predict_step(
        work,
        assumptions.rates,
        num_recomputed=num_recomputed,
        overlaps=assumptions.device == "gpu",
        encoded_share=assumptions.encoded_share,
        replayed=replayed,
        directions_share=kept.directions_share,
    )
    alignment_seconds = predict_alignment(work, assumptions.rates, step_time)
    return Plan(
        assumptions=assumptions,
        parts=(*state, *count_kept(sizes, settings, kept, world_size=world_size)),
        step_parts=(live, *activations),
        evaluation_bytes=evaluation,
        decodes_by=config.evaluation.decode,
        update_bytes=count_update(
            sizes,
            settings,
            world_size=world_size,
            holds_weights=kept.fisher,
            keeps_directions=kept.directions_share is not None,
        ),
        step_time=step_time,
        checkpoint_copy_bytes=count_checkpoint_copy(sizes, world_size=world_size, keeps_average=kept.average),
        audio_seconds_per_step=batches.mean.padded_seconds * config.batch.micro_batches_per_step,
        micro_batches_per_step=num_micro_batches,
        num_recomputed=num_recomputed,
        keeps_frozen=settings.keeps_frozen,
        num_steps=config.training.num_steps,
        alignment_steps=config.training.alignment_steps,
        alignment_seconds=alignment_seconds,
    )


def _replayed_texts(config: RunConfig) -> ReplayedTexts | None:
    """The texts beside each micro-batch, all taken to be as long as they may be."""
    options = config.replay
    if options is None:
        return None
    number = options.texts_per_step / config.batch.micro_batches_per_step
    return ReplayedTexts(number, options.max_tokens, anchored=options.anchor_weight > 0)
