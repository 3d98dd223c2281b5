"""Time of an optimizer step: computation at a given rate, and ZeRO-3's traffic at a given bandwidth. Pure arithmetic."""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.model.flops import ClipLengths, SpeechCost
from pipeline.planning.batches import LABEL_TOKENS_PER_SECOND, MicroBatchSize
from pipeline.planning.memory import ZeroSettings
from pipeline.planning.sizes import SpeechSizes

_FRAMES_PER_SECOND = 100


@dataclass(frozen=True)
class Rates:
    """What a rank computes in a second when it does nothing else, and receives from the others."""

    flops_per_second: float
    bytes_per_second: float


@dataclass(frozen=True)
class StepTime:
    """Seconds of a step by what they go to. `total` has communication hidden behind computation where the JSON overlaps them."""

    encoder: float
    forward: float
    backward: float
    recomputation: float
    communication: float
    total: float


def predict_step(
    cost: SpeechCost,
    sizes: SpeechSizes,
    settings: ZeroSettings,
    batch: MicroBatchSize,
    *,
    rates: Rates,
    micro_batches_per_rank: int,
    world_size: int,
    checkpointing: bool,
) -> StepTime:
    """Seconds of a step of `micro_batches_per_rank` micro-batches like `batch`.

    All are computed padded, so `batch`'s clips are taken to be of one length.
    """
    labels = round(batch.clip_seconds * LABEL_TOKENS_PER_SECOND) + 1
    clip = ClipLengths(max(1, round(batch.clip_seconds * _FRAMES_PER_SECOND)), labels)
    flops = cost.step([clip])
    scale = batch.num_samples * micro_batches_per_rank / rates.flops_per_second
    tokens = [cost.num_llm_tokens(clip)]
    again = cost.llm.forward(tokens) * scale if checkpointing else 0.0
    encoder, forward, backward = flops.encoder * scale, flops.forward * scale, flops.backward * scale
    moved = count_traffic(sizes, settings, world_size=world_size) * micro_batches_per_rank
    communication = moved / rates.bytes_per_second
    rest = forward + backward + again
    busy = max(rest, communication) if settings.overlaps_communication else rest + communication
    return StepTime(encoder, forward, backward, again, communication, encoder + busy)


def count_traffic(sizes: SpeechSizes, settings: ZeroSettings, *, world_size: int) -> int:
    """Bytes that a rank receives for one micro-batch: all weights for forward and again for backward, and trained gradients.

    A model below DeepSpeed's limit of live parameters stays gathered between the two.
    """
    whole = sizes.llm.num_parameters + sizes.num_adaptor_parameters
    trained = sizes.llm.num_trained + sizes.num_adaptor_parameters
    gathers = 1 if whole <= settings.max_live else 2
    return settings.itemsize * (gathers * whole + trained) * (world_size - 1) // world_size
