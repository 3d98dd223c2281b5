"""Clips laid one after the other in a single row of the LLM, without padding; attention sees each of them alone.

Everything in a decoder layer but attention works token by token, so its products and norms run over the row as it is. Attention
is given the clips beside each other, padded at their right, as a batch of rows would be: the same function with the same mask,
and no scores between clips.

B clips · L tokens of the longest clip · N tokens of the row · H heads · D head width
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from kappaspeech.errors import ConfigError
from kappaspeech.model.attention import MATMUL_ATTENTION, register_matmul_attention
from kappaspeech.model.family import LOADING_ERRORS, attentions_of, find_class
from kappaspeech.model.llm import decoder_layers

PACKED_PREFIX = "kappaspeech_packed_"
# torch's fused attention, and this project's own
PACKED_ATTENTIONS = ("sdpa", MATMUL_ATTENTION)
# layers whose attention is decided by a mask over positions; a recurrence would run on into the next clip
_MASKED_LAYERS = ("full_attention", "sliding_attention", "chunked_attention")
# two clips of different lengths, of which the second would see the first
_TRIED_LENGTHS = (5, 3)
# kinds of layers that take turns
_TRIED_LAYERS = 2
# Relative to the size of what a layer gives: some roundings of float32, or of bfloat16. Another clip seen is a change of tenths.
_ROUNDING = {torch.float32: 1e-4, torch.bfloat16: 2e-2}


@dataclass(frozen=True)
class PackedRow:
    """The places of a row's tokens among clips that lie beside each other: `places_N` in (B·L), `tokens_BL` back in (N).

    Padding's `tokens_BL` are any token's: what attention makes of it is left behind, and its gradient is zero.
    """

    num_clips: int
    longest: int
    places_N: Tensor
    tokens_BL: Tensor

    @property
    def position_ids(self) -> Tensor:
        """Position ids (1, N), from 0 in each clip."""
        return (self.places_N % self.longest)[None]

    def to(self, device: torch.device) -> PackedRow:
        places_N, tokens_BL = (part.to(device, non_blocking=True) for part in (self.places_N, self.tokens_BL))
        return PackedRow(self.num_clips, self.longest, places_N, tokens_BL)


def pack_lengths(lengths_B: Tensor) -> PackedRow:
    """The row of clips of these lengths, on the device of `lengths_B`: best the host, which then waits for nothing."""
    longest = int(lengths_B.max())
    within_L = torch.arange(longest, device=lengths_B.device)
    starts_B = lengths_B.cumsum(0) - lengths_B
    is_token_BL = within_L[None] < lengths_B[:, None]
    tokens_BL = torch.where(is_token_BL, starts_B[:, None] + within_L[None], starts_B[:, None])
    return PackedRow(len(lengths_B), longest, is_token_BL.flatten().nonzero()[:, 0], tokens_BL.flatten())


def pack_rows(llm: Any, attention: str) -> bool:
    """Let `llm` compute packed rows, each clip by `attention`, and return True; what isn't packed is computed as before.

    It is tried: an LLM whose clips would see each other, whatever its config says, is left as it was, and False is returned.
    """
    llm.set_attn_implementation(_register(attention))
    try:
        packs = _is_exact(llm)
    except LOADING_ERRORS:
        packs = False
    if not packs:
        llm.set_attn_implementation(attention)
    return packs


def packed_otherwise(llm: Any) -> str:
    """The clause that tells of an LLM that `pack_rows` left as it was."""
    return f"{type(llm).__name__} makes something else of clips in one row than of each alone"


def why_not_packed(config: Any, attention: str) -> str | None:
    """The reason that an LLM of this config can't pack rows by this attention, as a clause; None if its config names none.

    `pack_rows` proves it of a model.
    """
    takes = attentions_of(find_class(config))
    if not takes.registered:
        return f"{takes.family} takes no attention but its own"
    if attention not in PACKED_ATTENTIONS:
        return f"the attention of {takes.family} is {attention}, and clips are packed for {' and '.join(PACKED_ATTENTIONS)}"
    kinds = getattr(config.get_text_config(decoder=True), "layer_types", None) or ()
    others = sorted(set(kinds) - set(_MASKED_LAYERS))
    if others:
        return f"{takes.family} has layers of {' and '.join(others)}, which would run on from one clip into the next"
    return None


def check_packing(wanted: bool | Literal["auto"], obstacle: str | None) -> None:
    """Raise `ConfigError` if packed rows are asked for, and there is an obstacle."""
    if wanted is True and obstacle is not None:
        raise ConfigError(f"batch.packing is true, and {obstacle}. Set it to auto, which packs if that is possible, or to false.")


@torch.no_grad()
def _is_exact(llm: Any) -> bool:
    """Return whether the first layers of `llm`, which packs, compute the same for clips in one row as for each alone."""
    layers, embed = decoder_layers(llm), llm.get_input_embeddings()
    number = min(_TRIED_LAYERS, len(layers))
    weight = embed.weight
    ids_BL = torch.linspace(0, weight.shape[0] - 1, len(_TRIED_LENGTHS) * max(_TRIED_LENGTHS)).long()
    ids_BL = ids_BL.view(len(_TRIED_LENGTHS), -1).to(weight.device)
    last = layers[number - 1]
    alone = [_run_layers(llm, last, embed(ids[None, :length])) for ids, length in zip(ids_BL, _TRIED_LENGTHS, strict=True)]
    row = pack_lengths(torch.tensor(_TRIED_LENGTHS)).to(weight.device)
    with packed_masks(row) as options:
        together = _run_layers(llm, last, embed(ids_BL.flatten()[row.places_N][None]), **options)
    expected = torch.cat(alone, dim=1).float()
    error = (together.float() - expected).norm() / expected.norm()
    return bool(error < _ROUNDING.get(weight.dtype, max(_ROUNDING.values())))


class _ComputedError(Exception):
    """Ends a forward pass behind a layer, with what that gave."""

    def __init__(self, output: Any) -> None:
        super().__init__()
        self.states_1NH: Tensor = output if isinstance(output, Tensor) else output[0]


def _run_layers(llm: Any, last: nn.Module, embeds_1NH: Tensor, **options: Any) -> Tensor:
    """The states of a row behind the layer `last`."""

    def end(_layer: Any, _inputs: Any, output: Any) -> None:
        raise _ComputedError(output)

    hook = last.register_forward_hook(end)
    try:
        llm(inputs_embeds=embeds_1NH, use_cache=False, **options)
    except _ComputedError as computed:
        return computed.states_1NH
    finally:
        hook.remove()
    raise AssertionError("a layer of the LLM's list wasn't called")


@contextmanager
def packed_masks(row: PackedRow) -> Iterator[dict[str, Any]]:
    """The arguments of a forward pass beside its row of embeddings; within, masks are those of the clips."""
    # with a mask of its own given, transformers doesn't look for packed texts, which would wait for the device
    nothing_hidden = torch.ones(1, len(row.places_N), dtype=torch.bool, device=row.places_N.device)
    token = _ROW.set(row)
    try:
        yield {"position_ids": row.position_ids, "attention_mask": nothing_hidden, "packed_row": row}
    finally:
        _ROW.reset(token)


# transformers' masks know nothing of what its attentions are given
_ROW: ContextVar[PackedRow | None] = ContextVar("packed_row", default=None)


def _register(attention: str) -> str:
    """Make the packed form of `attention` known to transformers; return its name."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    if attention == MATMUL_ATTENTION:
        register_matmul_attention()
    attend, mask = ALL_ATTENTION_FUNCTIONS[attention], ALL_MASK_ATTENTION_FUNCTIONS[attention]

    def attend_apart(
        module: nn.Module,
        query_1HND: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        *,
        packed_row: PackedRow | None = None,
        **options: Any,
    ) -> tuple[Tensor, Tensor | None]:
        if packed_row is None:
            plain: tuple[Tensor, Tensor | None] = attend(module, query_1HND, key, value, attention_mask, **options)
            return plain
        apart = (_lay_apart(heads, packed_row) for heads in (query_1HND, key, value))
        mixed_BLHD, _ = attend(module, *apart, attention_mask, **options)
        return _lay_together(mixed_BLHD, packed_row), None

    def mask_apart(**options: Any) -> Tensor | None:
        row = _ROW.get()
        if row is not None:
            # one mask for all clips: they begin at 0, and causality hides what is padded at their right
            sizes = {"batch_size": 1, "q_length": row.longest, "kv_length": row.longest}
            options = {**options, **sizes, "attention_mask": None}
        masked: Tensor | None = mask(**options)
        return masked

    name = PACKED_PREFIX + attention
    AttentionInterface.register(name, attend_apart)
    AttentionMaskInterface.register(name, mask_apart)
    return name


def _lay_apart(heads_1HND: Tensor, row: PackedRow) -> Tensor:
    """(1, H, N, D) → (B, H, L, D)."""
    apart: Tensor = _Apart.apply(heads_1HND[0].transpose(0, 1), row)  # type: ignore[no-untyped-call]
    return apart.view(row.num_clips, row.longest, *apart.shape[1:]).transpose(1, 2)


def _lay_together(mixed_BLHD: Tensor, row: PackedRow) -> Tensor:
    """(B, L, H, D) → (1, N, H, D)."""
    together: Tensor = _Together.apply(mixed_BLHD.flatten(0, 1), row)  # type: ignore[no-untyped-call]
    return together[None]


class _Apart(torch.autograd.Function):
    """Rows of the clips, padding filled with tokens of theirs; its gradient, which is zero at padding, is only picked up."""

    @staticmethod
    def forward(context: Any, tokens: Tensor, row: PackedRow) -> Tensor:
        context.row = row
        return tokens.index_select(0, row.tokens_BL)

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0].index_select(0, context.row.places_N), None


class _Together(torch.autograd.Function):
    """The row's tokens picked from the clips; padding's gradient is zero."""

    @staticmethod
    def forward(context: Any, places: Tensor, row: PackedRow) -> Tensor:
        context.row = row
        return places.index_select(0, row.places_N)

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        row, gradient = context.row, gradients[0]
        return gradient.new_zeros(len(row.tokens_BL), *gradient.shape[1:]).index_copy_(0, row.places_N, gradient), None
