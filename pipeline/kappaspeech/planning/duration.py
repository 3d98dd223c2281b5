"""Time of an optimizer step: products, what lies between them, ZeRO-3's traffic, the update. Pure arithmetic at given rates."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from kappaspeech.model.flops import ClipLengths, SpeechCost
from kappaspeech.model.kept_directions import count_kept_directions
from kappaspeech.planning.batches import MicroBatchSize
from kappaspeech.planning.elementwise import count_elementwise
from kappaspeech.planning.memory import ReplayedTexts, ZeroSettings, count_tokens
from kappaspeech.planning.offload import count_offloaded
from kappaspeech.planning.sizes import FLOAT32_BYTES, SpeechSizes
from kappaspeech.speech.schedule import LABEL_TOKENS_PER_SECOND


@dataclass(frozen=True)
class Rates:
    """The rates of a rank, each while it does nothing else.

    It computes `flops_per_second` in products of the forward, and receives `bytes_per_second` of weights from the others. The
    backward, the encoder, gradients that are summed over ranks, and updated weights that are gathered many at once have rates of
    their own if these are known; each tensor of the last takes `seconds_per_regathered` beside its bytes.
    `elementwise_bytes_per_second` and `memory_bytes_per_second` are what activations and the optimizer's large states are read
    and written at; without them, that work is taken to be in the rate of the products. Each collective takes
    `seconds_per_message` beside its bytes. `host_link_bytes_per_second` is a GPU's copying to its host or from it, and
    `host_update_bytes_per_second` the host's memory in an update, of which a rank has its share.
    """

    flops_per_second: float
    bytes_per_second: float
    backward_flops_per_second: float | None = None
    encoder_flops_per_second: float | None = None
    elementwise_bytes_per_second: float | None = None
    memory_bytes_per_second: float | None = None
    reduced_bytes_per_second: float | None = None
    regathered_bytes_per_second: float | None = None
    seconds_per_regathered: float | None = None
    seconds_per_message: float = 0.0
    host_link_bytes_per_second: float | None = None
    host_update_bytes_per_second: float | None = None

    @property
    def are_measured(self) -> bool:
        """True if a machine was measured; assumed rates say nothing of the work between products."""
        return self.elementwise_bytes_per_second is not None


@dataclass(frozen=True)
class StepTime:
    """Seconds of a step by what they go to. In `total` communication is hidden behind computation if the two overlap."""

    encoder: float
    forward: float
    backward: float
    recomputation: float
    elementwise: float
    communication: float
    optimizer: float
    offload: float
    total: float


@dataclass(frozen=True)
class Traffic:
    """Bytes that a rank receives in a step: weights `gathered` by the passes, gradients `reduced`, and how many collectives bring
    them; and weights `regathered` all at once after their update, of `num_regathered` tensors."""

    gathered: int
    reduced: int
    num_messages: int
    regathered: int = 0
    num_regathered: int = 0

    def seconds(self, rates: Rates) -> float:
        """The time of it at these rates. Updated weights go as all others do if their own rates aren't known."""
        per_regathered = rates.seconds_per_message if rates.seconds_per_regathered is None else rates.seconds_per_regathered
        return (
            self.gathered / rates.bytes_per_second
            + self.reduced / (rates.reduced_bytes_per_second or rates.bytes_per_second)
            + self.num_messages * rates.seconds_per_message
            + self.regathered / (rates.regathered_bytes_per_second or rates.bytes_per_second)
            + self.num_regathered * per_regathered
        )


@dataclass(frozen=True)
class StepWork:
    """A step's work on each of `world_size` ranks: `micro_batches_per_rank` micro-batches like `batch` of a model."""

    cost: SpeechCost
    sizes: SpeechSizes
    settings: ZeroSettings
    batch: MicroBatchSize
    micro_batches_per_rank: int
    world_size: int


def predict_step(
    work: StepWork,
    rates: Rates,
    *,
    num_recomputed: int,
    overlaps: bool,
    encoded_share: float = 1.0,
    replayed: ReplayedTexts | None = None,
    directions_share: float | None = None,
) -> StepTime:
    """Seconds of a step.

    All micro-batches are computed padded, so the clips of `work.batch` are taken to be of one length; of packed ones the adaptor
    and the LLM are given the mean length. `overlaps`: the device can compute and communicate at once, if the settings ask for it;
    what is copied to and from a host is taken to hide behind nothing. `num_recomputed` layers are computed again. `encoded_share`
    of the clips meet the encoder, the others' states being kept from before. `replayed` texts stand beside the clips of each
    micro-batch. After the update each trained tensor gets `directions_share` of its directions back (`osf`), one tensor after the
    other: its products, in float32, are priced as the others.
    """
    cost, sizes, settings, batch = work.cost, work.sizes, work.settings, work.batch
    ranks: dict[str, Any] = {"world_size": work.world_size, "micro_batches_per_rank": work.micro_batches_per_rank}
    clip = _make_clip(batch.llm_seconds / batch.num_samples, cost)
    flops = replace(cost.step([clip]), encoder=cost.step([_make_clip(batch.clip_seconds, cost)]).encoder)
    num_clips = batch.num_samples * work.micro_batches_per_rank
    forward_rate = rates.flops_per_second
    backward_rate = rates.backward_flops_per_second or forward_rate
    encoder_rate = rates.encoder_flops_per_second or forward_rate
    share = num_recomputed / sizes.llm.num_layers
    again = share * cost.llm.forward([cost.num_llm_tokens(clip)]) * num_clips / forward_rate
    encoder = encoded_share * flops.encoder * num_clips / encoder_rate
    forward, backward = flops.forward * num_clips / forward_rate, flops.backward * num_clips / backward_rate
    if replayed is not None:
        num_texts = replayed.num_texts * work.micro_batches_per_rank
        text = cost.replay([replayed.num_tokens], anchored=replayed.anchored)
        again += share * cost.llm.forward([replayed.num_tokens]) * num_texts / forward_rate
        forward, backward = (
            forward + text.forward * num_texts / forward_rate,
            backward + text.backward * num_texts / backward_rate,
        )
    elementwise = 0.0
    if rates.elementwise_bytes_per_second is not None:
        counts = count_tokens(batch, sizes, prompt_tokens=cost.num_prompt_tokens, replayed=replayed)
        once, back = count_elementwise(sizes, counts, itemsize=settings.itemsize)
        moved = (1 + share) * once + back
        elementwise = moved * work.micro_batches_per_rank / rates.elementwise_bytes_per_second
    optimizer = 0.0
    if rates.memory_bytes_per_second is not None:
        optimizer = count_updated(sizes, settings, **ranks) / rates.memory_bytes_per_second
    communication = count_traffic(sizes, settings, **ranks).seconds(rates)
    if directions_share is not None:
        optimizer += count_restoring(sizes.llm.trained_shapes, directions_share) / forward_rate
        communication += count_restored(sizes, settings, world_size=work.world_size).seconds(rates)
    offload = 0.0
    if rates.host_link_bytes_per_second is not None and rates.host_update_bytes_per_second is not None:
        moved_away = count_offloaded(sizes, settings, **ranks)
        offload = (moved_away.to_host + moved_away.from_host) / rates.host_link_bytes_per_second
        offload += moved_away.updated / rates.host_update_bytes_per_second
    rest = forward + backward + again + elementwise
    busy = max(rest, communication) if overlaps and settings.overlaps_communication else rest + communication
    total = encoder + busy + optimizer + offload
    return StepTime(encoder, forward, backward, again, elementwise, communication, optimizer, offload, total)


def predict_alignment(work: StepWork, rates: Rates, step: StepTime) -> float:
    """Seconds of a step of the same `work` as `step` that aligns the adaptor alone: encoder, the adaptor's share of products, and
    the update.

    What trains of the LLM is cut and gathered again there, though it doesn't move.
    """
    cost, sizes, settings = work.cost, work.sizes, work.settings
    clip = [_make_clip(work.batch.llm_seconds / work.batch.num_samples, cost)]
    whole, aligned = cost.step(clip), cost.without_llm().step(clip)
    share = (aligned.forward + aligned.backward) / (whole.forward + whole.backward)
    ranks: dict[str, Any] = {"world_size": work.world_size, "micro_batches_per_rank": work.micro_batches_per_rank}
    optimizer = 0.0
    if rates.memory_bytes_per_second is not None:
        optimizer = count_updated(sizes, settings, aligning=True, **ranks) / rates.memory_bytes_per_second
    communication = count_traffic(sizes, settings, aligning=True, **ranks).seconds(rates)
    return step.encoder + share * (step.forward + step.backward) + optimizer + communication + step.offload


def count_restoring(shapes: Sequence[tuple[int, ...]], share: float) -> int:
    """Operations by which tensors of these shapes get their directions back (`KeptDirections.restore`): four products each."""
    total = 0
    for *stacked, num_rows, num_columns in shapes:
        number = count_kept_directions((num_rows, num_columns), share=share)
        total += 4 * 2 * math.prod(stacked) * number * num_rows * num_columns
    return total


def count_restored(sizes: SpeechSizes, settings: ZeroSettings, *, world_size: int) -> Traffic:
    """The traffic of tensors that get their directions back (zero3/orthogonal_updates.py): each is gathered and sent in float32,
    then sent and gathered anew in what is computed in, one by one."""
    if world_size == 1:
        return Traffic(0, 0, 0)
    num_bytes = 2 * (FLOAT32_BYTES + settings.itemsize) * sizes.llm.num_trained
    return Traffic(num_bytes * (world_size - 1) // world_size, 0, 4 * len(sizes.llm.trained_shapes))


def _make_clip(seconds: float, cost: SpeechCost) -> ClipLengths:
    return ClipLengths(max(1, round(seconds * cost.frames_per_second)), round(seconds * LABEL_TOKENS_PER_SECOND) + 1)


def count_traffic(
    sizes: SpeechSizes, settings: ZeroSettings, *, world_size: int, micro_batches_per_rank: int, aligning: bool = False
) -> Traffic:
    """The bytes that a rank receives in a step of `micro_batches_per_rank`, under DeepSpeed 0.19.

    Each micro-batch gathers all weights for its forward and again for its backward, but only once if the model is below the
    limit of live parameters, which stay gathered between the two; and reduces the trained gradients. Tensors up to the
    persistence threshold stay whole from one micro-batch to the next. Of these a step cuts what trains, and gathers it again at
    its end, all at once; the frozen ones, and with `keeps_frozen` all that are frozen, are gathered once a run
    (`keep_frozen_whole`). A step that is `aligning` the adaptor alone runs that and the LLM's token embeddings, which are
    gathered for it if they don't stay whole.
    """
    if world_size == 1:
        return Traffic(0, 0, 0)
    threshold = settings.persistence_threshold
    changing = (*sizes.adaptor_tensor_sizes, *sizes.llm.trained_sizes)
    persistent = [size for size in changing if size <= threshold]
    others = [size for size in (changing if settings.keeps_frozen else sizes.tensor_sizes) if size > threshold]
    trained = sizes.llm.num_trained + sizes.num_adaptor_parameters
    if aligning:
        embeddings = sizes.llm.trained_embeddings if settings.keeps_frozen else sizes.llm.vocabulary * sizes.llm.width
        others = [size for size in (*sizes.adaptor_tensor_sizes, embeddings) if size > threshold]
        trained = sizes.num_adaptor_parameters
    gathers = (1 if sum(sizes.tensor_sizes) <= settings.max_live else 2) * micro_batches_per_rank
    gathered, regathered = settings.itemsize * gathers * sum(others), settings.itemsize * sum(persistent)
    reduced = settings.reduced_itemsize * trained * micro_batches_per_rank
    # each tensor is gathered by a collective of its own, and gradients are reduced a bucket at a time
    num_buckets = -(-trained // settings.reduce_bucket) if settings.reduce_bucket else 1
    num_messages = gathers * len(others) + micro_batches_per_rank * num_buckets
    gathered, reduced, regathered = (part * (world_size - 1) // world_size for part in (gathered, reduced, regathered))
    return Traffic(gathered, reduced, num_messages, regathered, len(persistent))


def count_updated(
    sizes: SpeechSizes, settings: ZeroSettings, *, world_size: int, micro_batches_per_rank: int, aligning: bool = False
) -> int:
    """Bytes that a rank reads and writes to collect its gradients and to update its partitions.

    Each micro-batch's gradients are copied into a bucket, put in order and divided there, whole, and copied and added to the
    rank's partition. Alone, a rank's own collective copies them twice more (profiled on gloo). In the update their norm is taken,
    and they are clipped, in float32; AdamW reads weights, gradient and two moments and writes all but the gradient; and the
    weights are cast back. A step that is `aligning` the adaptor alone has gradients of it alone, and moves it alone.
    """
    trained = sizes.llm.num_trained + sizes.num_adaptor_parameters
    moved = sizes.num_adaptor_parameters if aligning else trained
    computed, added = settings.itemsize, settings.gradient_itemsize
    reduced = settings.reduced_itemsize if world_size > 1 else computed
    exchanged = 0 if world_size > 1 else 4 * reduced
    collected = moved * (computed + 5 * reduced + exchanged) + moved * (reduced + 3 * added) // world_size
    cast = added + FLOAT32_BYTES if added != FLOAT32_BYTES else 0
    settled = trained * (cast + added + 2 * FLOAT32_BYTES + (FLOAT32_BYTES + computed))
    update = (settled + moved * 7 * FLOAT32_BYTES) // world_size
    return collected * micro_batches_per_rank + update
