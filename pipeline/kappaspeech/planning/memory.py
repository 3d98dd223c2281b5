"""Memory of a rank that trains under ZeRO-3, by part. Pure arithmetic; each term says whose bytes it counts.

H width · I inner width · Q query width · K key width · V vocabulary · W ranks · b bytes of the compute dtype
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from kappaspeech.model.loss import CHUNK_ELEMENTS
from kappaspeech.planning.batches import MicroBatchSize
from kappaspeech.planning.sizes import FLOAT32_BYTES, LlmSizes, SpeechSizes
from kappaspeech.ranks.part_exchange import OPEN_BYTES
from kappaspeech.speech.schedule import LABEL_TOKENS_PER_SECOND

# by DeepSpeed's names
_ITEMSIZES = {"fp32": 4, "fp16": 2, "bf16": 2}
# weights and Adam's two moments
_OPTIMIZER_BYTES = 3 * FLOAT32_BYTES
# Whisper's widest point a state: its input, the norm's output, and the MLP's inner states before and after GELU
_ENCODER_TRANSIENT_WIDTHS = 10


@dataclass(frozen=True)
class ZeroSettings:
    """The settings of a DeepSpeed JSON that decide memory and traffic. Sizes are in elements, as DeepSpeed counts them.

    Gradients are added up over micro-batches in `gradient_itemsize` bytes an element, and over ranks in `reduced_itemsize`.
    With `keeps_frozen` frozen weights of any size stay whole on each rank; `may_keep_frozen` leaves that to the memory.
    """

    itemsize: int
    max_live: int
    prefetch: int
    reduce_bucket: int
    sub_group: int
    persistence_threshold: int
    optimizer_on_host: bool
    parameters_on_host: bool
    overlaps_communication: bool
    gradient_itemsize: int = FLOAT32_BYTES
    reduced_itemsize: int = FLOAT32_BYTES
    may_keep_frozen: bool = False
    keeps_frozen: bool = False


@dataclass(frozen=True)
class MemoryPart:
    """A part of a rank's memory. `on_host`: it is the host's and not the accelerator's."""

    name: str
    num_bytes: int
    on_host: bool = False


def read_settings(deepspeed_config: Mapping[str, Any]) -> ZeroSettings:
    """The settings of a DeepSpeed JSON, with DeepSpeed 0.19's defaults for all that it doesn't set, and `settle_gradients`'s."""
    zero = deepspeed_config.get("zero_optimization", {})
    on_host = {key: zero.get(key, {}).get("device", "none") != "none" for key in ("offload_optimizer", "offload_param")}
    return ZeroSettings(
        itemsize=2 if deepspeed_config.get("bf16", {}).get("enabled") else FLOAT32_BYTES,
        max_live=_number(zero, "stage3_max_live_parameters", 1_000_000_000),
        prefetch=_number(zero, "stage3_prefetch_bucket_size", 50_000_000),
        reduce_bucket=_number(zero, "reduce_bucket_size", 500_000_000) if zero.get("contiguous_gradients", True) else 0,
        sub_group=_number(zero, "sub_group_size", 1_000_000_000),
        persistence_threshold=_number(zero, "stage3_param_persistence_threshold", 100_000),
        optimizer_on_host=on_host["offload_optimizer"],
        parameters_on_host=on_host["offload_param"],
        overlaps_communication=bool(zero.get("overlap_comm", True)),
        gradient_itemsize=_ITEMSIZES.get(str(deepspeed_config.get("data_types", {}).get("grad_accum_dtype")), FLOAT32_BYTES),
        reduced_itemsize=_ITEMSIZES.get(str(deepspeed_config.get("communication_data_type")), FLOAT32_BYTES),
    )


def _number(zero: Mapping[str, Any], key: str, default: int) -> int:
    value = zero.get(key, default)
    # "auto" is for transformers' Trainer to fill in
    return int(float(value)) if isinstance(value, (int, float)) else default


def count_state(
    sizes: SpeechSizes,
    settings: ZeroSettings,
    *,
    world_size: int,
    on_cpu: bool = False,
) -> list[MemoryPart]:
    """The memory that a rank of any run holds all the time: its partitions, DeepSpeed's bucket, and the encoder."""
    b = settings.itemsize
    trained = sizes.llm.num_trained + sizes.num_adaptor_parameters
    frozen = sizes.llm.num_parameters - sizes.llm.num_trained
    small, frozen_whole = count_whole(sizes, settings)
    compute_copy = b * trained // world_size
    optimizer = _OPTIMIZER_BYTES * trained // world_size
    if settings.optimizer_on_host:
        # DeepSpeed keeps a float32 copy of the gradients there beside those that are added up
        optimizer += FLOAT32_BYTES * trained // world_size
    # alone, a rank has nothing to sum: its bucket stays in the compute dtype
    reduced = settings.reduced_itemsize if world_size > 1 else b
    used = min(settings.reduce_bucket, trained)
    laid_out = reduced * trained * (world_size - 1) // world_size if on_cpu else 0
    return [
        MemoryPart("frozen weights", b * frozen // world_size, settings.parameters_on_host),
        MemoryPart("trained weights", compute_copy, settings.parameters_on_host),
        MemoryPart("fp32 master, Adam", optimizer, settings.optimizer_on_host),
        MemoryPart("gradients", settings.gradient_itemsize * trained // world_size, settings.optimizer_on_host),
        MemoryPart("small weights kept whole", b * small if world_size > 1 else 0),
        MemoryPart("frozen weights kept whole", b * frozen_whole if world_size > 1 else 0),
        # all of it is allocated on a GPU, and a copy in the ranks' order while it is summed; a CPU has only the pages it uses
        MemoryPart("reduce bucket", reduced * (used if on_cpu else settings.reduce_bucket + used)),
        MemoryPart("exchanged blocks", count_exchanged(laid_out)),
        MemoryPart("encoder", sizes.encoder_itemsize * sizes.num_encoder_parameters),
    ]


def count_exchanged(laid_out_bytes: int, *, open_bytes: int = OPEN_BYTES) -> int:
    """Bytes of the blocks in which a rank on processors lays out what others take of it (`PartExchange`): two take turns, and no
    more of either is touched than that fills."""
    return 2 * min(open_bytes, laid_out_bytes)


def count_whole(sizes: SpeechSizes, settings: ZeroSettings) -> tuple[int, int]:
    """Elements of what stays whole from step to step: tensors up to the threshold, and the frozen ones above it if they do."""
    threshold = settings.persistence_threshold
    small = sum(size for size in sizes.tensor_sizes if size <= threshold)
    large = sum(size for size in sizes.llm.tensor_sizes if size > threshold)
    trained = sum(size for size in sizes.llm.trained_sizes if size > threshold)
    return small, large - trained if settings.keeps_frozen else 0


def count_live(sizes: SpeechSizes, settings: ZeroSettings, *, world_size: int, num_recomputed: int = 0) -> int:
    """Bytes of gathered weights beside what stays whole (`count_whole`): up to DeepSpeed's limit, or the largest tensor; alone, a
    rank reads its partitions in place.

    Tensors of fused experts come to that limit if their layers aren't computed again: autograd keeps views of them, one for each
    expert or all turned round, from the forward to the backward, and DeepSpeed can free none of it.
    """
    if world_size == 1 and not settings.parameters_on_host:
        return 0
    llm = sizes.llm
    apart = llm.num_parameters + sizes.num_adaptor_parameters - sum(count_whole(sizes, settings))
    kept = 0 if settings.keeps_frozen else llm.expert_elements * (llm.num_layers - num_recomputed) // llm.num_layers
    return settings.itemsize * min(apart, max(settings.max_live, max(llm.tensor_sizes)) + settings.prefetch + kept)


@dataclass(frozen=True)
class TokenCounts:
    """Positions of a micro-batch as the models see it, padding included; `squares` is the sum of its clips' lengths squared, as
    attention sees them: padded. `clip_states` are those of the longest clip."""

    states: float
    audio: float
    llm: float
    labels: float
    squares: float
    clip_states: float = 0.0


@dataclass(frozen=True)
class ReplayedTexts:
    """The `num_texts` of `num_tokens` each that stand beside a micro-batch's clips; an anchor takes as many logits again."""

    num_texts: float
    num_tokens: int
    anchored: bool

    @property
    def num_logits(self) -> float:
        return self.num_texts * (self.num_tokens - 1) * (2 if self.anchored else 1)


def count_tokens(
    batch: MicroBatchSize, sizes: SpeechSizes, *, prompt_tokens: int, replayed: ReplayedTexts | None = None
) -> TokenCounts:
    """Positions of a micro-batch whose clips are all as long as its longest. Texts and clips are padded to one length."""
    audio_tokens = batch.padded_seconds / sizes.seconds_per_audio_token
    states = batch.num_samples * sizes.max_states if sizes.pad_to_30s else audio_tokens * sizes.stacking
    labels, tokens = _count_llm(batch.llm_seconds, batch, sizes, prompt_tokens=prompt_tokens)
    _, padded = _count_llm(batch.padded_seconds, batch, sizes, prompt_tokens=prompt_tokens)
    if replayed is None:
        return TokenCounts(states, audio_tokens, tokens, labels, padded**2 / batch.num_samples, states / batch.num_samples)
    num_rows, longest = batch.num_samples + replayed.num_texts, max(padded / batch.num_samples, replayed.num_tokens)
    tokens = num_rows * longest if batch.packed_seconds is None else tokens + replayed.num_texts * replayed.num_tokens
    squares, clip_states = num_rows * longest**2, states / batch.num_samples
    return TokenCounts(states, audio_tokens, tokens, labels + replayed.num_logits, squares, clip_states)


def _count_llm(seconds: float, batch: MicroBatchSize, sizes: SpeechSizes, *, prompt_tokens: int) -> tuple[float, float]:
    """Labels, and all of the LLM's tokens, of a micro-batch's clips that are so long together."""
    labels = seconds * LABEL_TOKENS_PER_SECOND + batch.num_samples
    return labels, seconds / sizes.seconds_per_audio_token + labels + batch.num_samples * prompt_tokens


def kept_bytes_per_token(llm: LlmSizes, *, itemsize: int) -> int:
    """Bytes that a token leaves in one Llama layer for its backward, squares of attention aside.

    Both norms' float32 inputs and scales; attention's query, key, value and, if fused, output and log-sum; the MLP's gate before
    and after SiLU, and its other factor. Frozen linear layers keep nothing of their input. A test holds this against torch's
    saved-tensor hooks.
    """
    norms = 2 * (FLOAT32_BYTES * llm.width + FLOAT32_BYTES)
    attention = itemsize * (llm.query_width + 2 * llm.key_width)
    if llm.fused_attention:
        attention += itemsize * llm.query_width + FLOAT32_BYTES * llm.num_heads
    return norms + attention + itemsize * 3 * llm.inner_width


def count_activations(
    sizes: SpeechSizes, settings: ZeroSettings, tokens: TokenCounts, *, num_recomputed: int
) -> list[MemoryPart]:
    """The activations that one micro-batch keeps for its backward, at its widest, with its encoder states.

    The first `num_recomputed` layers are computed again.
    """
    b, llm = settings.itemsize, sizes.llm
    kept_a_layer = kept_bytes_per_token(llm, itemsize=b)
    kept_inputs = b * llm.kept_inputs
    squares = 0 if llm.fused_attention else b * llm.num_heads * tokens.squares
    # Layers that are computed again keep their input. One of them at a time has all, when the other layers' is gone.
    num_whole = max(llm.num_layers - num_recomputed, min(num_recomputed, 1))
    kept = num_recomputed * b * llm.width + num_whole * kept_a_layer + num_whole * kept_inputs // llm.num_layers
    # gradients of the MLP's three inner states, or of a norm in float32
    transient = max(3 * b * llm.inner_width, 3 * FLOAT32_BYTES * llm.width)
    adaptor_widths = sizes.num_adaptor_layers * 8 * sizes.adaptor_width + 2 * sizes.adaptor_width
    adaptor = b * (adaptor_widths + sizes.stacking * sizes.encoder_width + llm.width)
    # the logits; the float32 copy of a chunk and its softmax or gradient; if there are several chunks, the whole gradient
    logits = tokens.labels * llm.vocabulary
    in_chunks = logits > CHUNK_ELEMENTS
    logits_bytes = (2 * b if in_chunks else b) * logits + 2 * FLOAT32_BYTES * min(logits, CHUNK_ELEMENTS)
    layers = sizes.encoder_width * _ENCODER_TRANSIENT_WIDTHS * tokens.states
    # waveforms are convolved one by one, before the layers see all
    encoding = sizes.encoder_itemsize * max(layers, sizes.extraction_elements * tokens.clip_states)
    encoded = sizes.encoder_itemsize * sizes.encoder_width * tokens.states
    return [
        MemoryPart("activations", int(tokens.llm * (kept + transient))),
        MemoryPart("attention weights", int(squares * num_whole)),
        MemoryPart("adaptor's activations", int(tokens.audio * adaptor)),
        MemoryPart("logits at labels", int(logits_bytes)),
        # made for the forward, and kept for the backward
        MemoryPart("fused experts with LoRA", b * llm.adapted_elements * num_whole // llm.num_layers),
        MemoryPart("gradient of fused experts", b * llm.fused_elements),
        # while it encodes, the LLM holds no activations
        MemoryPart("encoding", max(0, int(encoding - tokens.llm * (kept + transient)))),
        MemoryPart("encoder states", int(encoded)),
    ]


def count_update(
    sizes: SpeechSizes, settings: ZeroSettings, *, world_size: int, holds_weights: bool = False, keeps_directions: bool = False
) -> int:
    """Bytes of the gradients' float32 copy while the optimizer steps, one sub-group of parameters after the other, and of the
    distance by which `ewc` pulls; or, after it, of a tensor that `osf` projects."""
    # the whole tensor, a product of its size for either side, and the result
    projected = 4 * FLOAT32_BYTES * max(sizes.llm.trained_sizes, default=0) if keeps_directions else 0
    if settings.optimizer_on_host:
        return projected
    trained = sizes.llm.num_trained + sizes.num_adaptor_parameters
    moved = min(sizes.llm.num_trained // world_size, settings.sub_group) if holds_weights else 0
    return max(FLOAT32_BYTES * (min(trained // world_size, settings.sub_group) + moved), projected)


def count_checkpoint_copy(sizes: SpeechSizes, *, world_size: int, keeps_average: bool = False) -> int:
    """Bytes of a rank's share of a checkpoint, which lie in its host's memory while they are written beside the steps."""
    trained = sizes.llm.num_trained + sizes.num_adaptor_parameters
    return (_OPTIMIZER_BYTES + (FLOAT32_BYTES if keeps_average else 0)) * trained // world_size
