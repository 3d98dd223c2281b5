"""An LLM's own forward pass with its head applied at label positions alone.

B batch · N sequence · H LLM width · V vocabulary · R label positions of the batch, flattened
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from kappaspeech.errors import CheckpointError
from kappaspeech.model.packed_rows import PackedRow, packed_masks


def label_logits(
    llm: Any, embeds_BNH: Tensor, rows_R: Tensor, positions_R: Tensor, *, packed_row: PackedRow | None = None
) -> Tensor:
    """The logits (R, V) of `llm` at these positions, with all that it does after its head: soft caps, logit scales.

    With a `packed_row` the embeddings are one row of many clips, of an LLM that can compute it (`pack_rows`).

    Its whole forward runs, and the head is given the states of these positions in place of all: a vocabulary's logits are the
    most that a step could hold. Raises `CheckpointError` for an LLM whose head can't be given them.
    """

    def pick(_head: Any, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        return inputs[0][rows_R, positions_R], *inputs[1:]

    hook = llm.get_output_embeddings().register_forward_pre_hook(pick)
    try:
        # rows are padded at the right, so causality alone hides padding from every position that counts
        with packed_masks(packed_row) as options:
            logits_RV: Tensor = llm(inputs_embeds=embeds_BNH, use_cache=False, return_dict=True, **options).logits
    finally:
        hook.remove()
    if logits_RV.shape[:-1] != rows_R.shape:
        raise CheckpointError(
            f"{type(llm).__name__} passes its head by, so its loss can't be taken at the transcripts' positions alone. "
            "Give another model as model.llm."
        )
    return logits_RV
