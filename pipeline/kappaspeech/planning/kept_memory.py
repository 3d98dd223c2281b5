"""Memory of what a run keeps beside its weights: an average of them, and what holds them to their beginning. Pure arithmetic."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from kappaspeech.config.run_config import RunConfig
from kappaspeech.model.kept_directions import count_kept_directions
from kappaspeech.model.tensor_digests import share_out
from kappaspeech.planning.memory import MemoryPart, ZeroSettings
from kappaspeech.planning.sizes import FLOAT32_BYTES, SpeechSizes


@dataclass(frozen=True)
class Kept:
    """The things that a configuration asks a run to keep.

    `average`: `training.ema_decay`. `fisher`: `ewc`. `base_weights`: evaluations under ZeRO-3 compare text with the base, or a
    budget draws the LLM back to it.
    `directions_share`: what `unfreeze.osf` keeps of each tensor's directions. `anchored_tokens` are those of which an anchor
    keeps the base's states; None without an anchor.
    """

    average: bool = False
    fisher: bool = False
    base_weights: bool = False
    directions_share: float | None = None
    anchored_tokens: int | None = None


def read_kept(config: RunConfig, *, anchored_tokens: int) -> Kept:
    """The things that `config` asks for; `anchored_tokens` count if it asks for an anchor."""
    has_budget = config.replay is not None and config.replay.forgetting_budget_nats is not None
    reads_text = bool(config.data.test) and bool(config.data.text or config.data.tasks)
    return Kept(
        average=config.training.ema_decay is not None,
        fisher=config.ewc is not None,
        base_weights=(reads_text and config.evaluation.decode != "replica") or has_budget,
        directions_share=config.unfreeze.osf.kept_share if config.unfreeze.osf else None,
        anchored_tokens=anchored_tokens if config.replay and config.replay.anchor_weight else None,
    )


def count_kept(sizes: SpeechSizes, settings: ZeroSettings, kept: Kept, *, world_size: int) -> list[MemoryPart]:
    """The parts of it that a rank holds all the time.

    The anchor's states and head are whole on each rank; of the rest it has its partitions, but the directions of its share of the
    matrices.
    """
    b, llm, on_host = settings.itemsize, sizes.llm, settings.optimizer_on_host
    trained = llm.num_trained + sizes.num_adaptor_parameters
    average = FLOAT32_BYTES * trained // world_size if kept.average else 0
    fisher = 2 * FLOAT32_BYTES * llm.num_trained // world_size if kept.fisher else 0
    directions = 0 if kept.directions_share is None else count_directions(llm.trained_shapes, kept.directions_share, world_size)
    base = b * llm.num_trained // world_size if kept.base_weights else 0
    return [
        MemoryPart("moving average", average, on_host),
        MemoryPart("Fisher and its anchor", fisher, on_host),
        MemoryPart("kept directions", directions),
        MemoryPart("base of trained weights", base, on_host=True),
        MemoryPart("anchor's states", b * llm.width * (kept.anchored_tokens or 0), on_host=True),
        # the base's head beside the LLM's own
        MemoryPart("anchor's head", 0 if kept.anchored_tokens is None else b * llm.trained_head),
    ]


def count_directions(shapes: Sequence[tuple[int, ...]], share: float, world_size: int) -> int:
    """Bytes of the singular directions, `share` of each matrix's, of the rank that has most of them (`KeptDirections`)."""
    loads = [0] * world_size
    for shape, owner in zip(shapes, share_out([math.prod(shape) for shape in shapes], world_size), strict=True):
        *stacked, num_rows, num_columns = shape
        number = count_kept_directions(shape, share=share)
        # a vector on either side of each σ
        loads[owner] += FLOAT32_BYTES * math.prod(stacked) * number * (num_rows + num_columns + 1)
    return max(loads)
