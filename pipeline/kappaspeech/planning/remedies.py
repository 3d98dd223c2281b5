"""Changes of a configuration by which a rank would need less memory."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from kappaspeech.config.run_config import RunConfig
from kappaspeech.model.flops import SpeechCost
from kappaspeech.planning.batches import BatchSizes
from kappaspeech.planning.memory import ZeroSettings
from kappaspeech.planning.plan import Assumptions, Plan, make_plan
from kappaspeech.planning.sizes import SpeechSizes

# elements in zero3_offload_optimizer.json's reduce bucket
_SMALL_BUCKET = 50_000_000


@dataclass(frozen=True)
class Remedy:
    """A change of the configuration, and what a rank would need with it."""

    change: str
    peak_bytes: int
    host_bytes: int


def find_remedies(
    config: RunConfig, settings: ZeroSettings, sizes: SpeechSizes, cost: SpeechCost, assumptions: Assumptions
) -> list[Remedy]:
    """Changes that make a rank need less, one at a time, then all that cost little together; the largest saving first."""

    def plan(**changes: Any) -> Plan:
        made = {"config": config, "settings": settings, "assumptions": assumptions, **changes}
        return make_plan(made["config"], made["settings"], sizes, cost, made["assumptions"])

    before = plan()
    checkpointed = config.model_copy(update={"training": config.training.model_copy(update={"activation_checkpointing": True})})
    smaller = replace(assumptions, batches=_halve(assumptions.batches))
    together = config.model_copy(update={"evaluation": config.evaluation.model_copy(update={"decode": "zero3"})})
    lean = replace(settings, reduce_bucket=settings.reduce_bucket // 10, max_live=settings.max_live // 4)
    # each of these is a preset of ds_configs/
    optimizer_away = replace(settings, optimizer_on_host=True, reduce_bucket=min(settings.reduce_bucket, _SMALL_BUCKET))
    all_away = replace(settings, optimizer_on_host=True, parameters_on_host=True)
    tried: list[tuple[str, Callable[[], Plan]]] = [
        ("training.activation_checkpointing: true", lambda: plan(config=checkpointed)),
        (
            "half of batch.max_seconds and batch.max_samples, twice batch.micro_batches_per_step",
            lambda: plan(assumptions=smaller),
        ),
        ("DeepSpeed JSON: a tenth of reduce_bucket_size, a quarter of stage3_max_live_parameters", lambda: plan(settings=lean)),
        ("evaluation.decode: zero3", lambda: plan(config=together)),
        ("deepspeed: ds_configs/zero3_offload_optimizer.json", lambda: plan(settings=optimizer_away)),
        ("deepspeed: ds_configs/zero3_offload.json, slower", lambda: plan(settings=all_away)),
        (
            f"{2 * assumptions.world_size} ranks in place of {assumptions.world_size}",
            lambda: plan(assumptions=replace(assumptions, world_size=2 * assumptions.world_size)),
        ),
        (
            "checkpointing, half the batch, smaller buckets, evaluation.decode zero3: all of these",
            lambda: plan(
                config=checkpointed.model_copy(update={"evaluation": together.evaluation}), assumptions=smaller, settings=lean
            ),
        ),
    ]
    remedies = [Remedy(change, made.peak_bytes, made.host_bytes) for change, make in tried for made in [make()]]
    return sorted((item for item in remedies if item.peak_bytes < before.peak_bytes), key=lambda item: item.peak_bytes)


def _halve(batches: BatchSizes) -> BatchSizes:
    return replace(batches, largest=batches.largest.scaled(0.5), mean=batches.mean.scaled(0.5))
