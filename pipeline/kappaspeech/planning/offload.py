"""The traffic of a step between a GPU and its host that holds the optimizer or the weights. Pure arithmetic."""

from __future__ import annotations

from dataclasses import dataclass

from kappaspeech.planning.memory import ZeroSettings
from kappaspeech.planning.sizes import FLOAT32_BYTES, SpeechSizes


@dataclass(frozen=True)
class Offloaded:
    """Bytes of a rank in a step: what it copies to its host and from it, and what the host reads and writes in the update."""

    to_host: int
    from_host: int
    updated: int


def count_offloaded(sizes: SpeechSizes, settings: ZeroSettings, *, world_size: int, micro_batches_per_rank: int) -> Offloaded:
    """The traffic of a step as DeepSpeed 0.19 makes it (stage3.py: `partition_grads`, `_optimizer_step`).

    The partition of the gradients goes to the host with each micro-batch, and comes back before the next to be added to. The
    host's AdamW reads weights, gradient and two moments and writes all but the gradient, and casts the weights, which return.
    Weights that lie on the host come from there for every gather.
    """
    trained = (sizes.llm.num_trained + sizes.num_adaptor_parameters) // world_size
    to_host = from_host = updated = 0
    if settings.optimizer_on_host:
        to_host += micro_batches_per_rank * settings.reduced_itemsize * trained
        from_host += (micro_batches_per_rank - 1) * settings.reduced_itemsize * trained + settings.itemsize * trained
        updated += (7 * FLOAT32_BYTES + settings.itemsize) * trained
    if settings.parameters_on_host:
        gathers = (1 if sum(sizes.tensor_sizes) <= settings.max_live else 2) * micro_batches_per_rank
        from_host += gathers * settings.itemsize * sum(sizes.tensor_sizes) // world_size
    return Offloaded(to_host, from_host, updated)
