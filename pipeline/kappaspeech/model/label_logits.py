"""An LLM's own forward pass with its head applied at chosen positions alone.

B batch · N sequence · H LLM width · V vocabulary · R label positions of the batch, flattened · K states that were kept
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from kappaspeech.errors import CheckpointError
from kappaspeech.model.packed_rows import PackedRow, packed_masks


@dataclass(frozen=True)
class KeptStates:
    """States (K, H) that the head was given in another pass. `head`, if it isn't None, takes its place for them."""

    states_KH: Tensor
    head: nn.Module | None = None


def label_logits(
    llm: Any,
    embeds_BNH: Tensor,
    rows_R: Tensor,
    positions_R: Tensor,
    *,
    packed_row: PackedRow | None = None,
    kept: KeptStates | None = None,
) -> Tensor:
    """The logits (R, V) of `llm` at these positions, with all that it does after its head: soft caps, logit scales.

    With a `packed_row` the embeddings are one row of many clips, of an LLM that can compute it (`pack_rows`).

    Its whole forward runs, and the head is given the states of these positions in place of all: a vocabulary's logits are the
    most that a step could hold. With `kept` its states follow, so that (R + K, V) is returned. Raises `CheckpointError` for an
    LLM whose head can't be given them.
    """

    def pick(_head: Any, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        states = inputs[0][rows_R, positions_R]
        if kept is not None and kept.head is None:
            states = torch.cat([states, kept.states_KH])
        return states, *inputs[1:]

    def append(_head: Any, _inputs: tuple[Any, ...], logits_RV: Tensor) -> Tensor:
        assert kept is not None
        assert kept.head is not None
        return torch.cat([logits_RV, kept.head(kept.states_KH)])

    head = llm.get_output_embeddings()
    hooks = [head.register_forward_pre_hook(pick)]
    if kept is not None and kept.head is not None:
        hooks.append(head.register_forward_hook(append))
    try:
        # rows are padded at the right, so causality alone hides padding from every position that counts
        masks: AbstractContextManager[dict[str, Any]] = nullcontext({}) if packed_row is None else packed_masks(packed_row)
        with masks as options:
            logits_RV: Tensor = llm(inputs_embeds=embeds_BNH, use_cache=False, return_dict=True, **options).logits
    finally:
        for hook in hooks:
            hook.remove()
    if logits_RV.shape[:-1] != (len(rows_R) + (0 if kept is None else len(kept.states_KH)),):
        raise CheckpointError(
            f"{type(llm).__name__} passes its head by, so its loss can't be taken at the transcripts' positions alone. "
            "Give another model as model.llm."
        )
    return logits_RV


@torch.no_grad()
def head_states(llm: Any, ids_N: Tensor) -> Tensor:
    """The states (N − 1, H) from which `llm`'s head foretells each token of a text but the first."""
    met: list[Tensor] = []

    def keep(_head: Any, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        met.append(inputs[0][0, :-1])
        # the head's own work isn't wanted
        return inputs[0][:, :1], *inputs[1:]

    hook = llm.get_output_embeddings().register_forward_pre_hook(keep)
    try:
        llm(input_ids=ids_N[None], use_cache=False)
    finally:
        hook.remove()
    if len(met) != 1 or len(met[0]) != len(ids_N) - 1:
        raise CheckpointError(
            f"{type(llm).__name__} passes its head by, so nothing can hold it to what it said. Set replay.anchor_weight to 0."
        )
    return met[0]
