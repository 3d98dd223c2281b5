"""Text from spliced prompts by the LLM's own `generate`, and the rule that ends a row when it repeats itself.

An export holds this file as it is.

B batch · N longest left-padded prompt · H LLM width · L tokens generated so far
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

# A row loops once an n-gram of at most so many tokens stands at its end so often in a row, over so many tokens in all.
LOOP_LONGEST_NGRAM = 20
LOOP_MIN_REPEATS = 4
LOOP_MIN_TOKENS = 24
# a checkpoint may bring defaults of its own, made for chat; transformers saves none of sampling or of beams beside these
GREEDY: dict[str, Any] = {
    "do_sample": False,
    **dict.fromkeys(("temperature", "top_p", "top_k", "top_h", "min_p", "typical_p", "epsilon_cutoff", "eta_cutoff")),
    "num_beams": 1,
    "num_return_sequences": 1,
    "early_stopping": False,
    "length_penalty": 1.0,
    "repetition_penalty": 1.0,
    "no_repeat_ngram_size": 0,
    "min_length": 0,
    **dict.fromkeys(("min_new_tokens", "max_time", "stop_strings", "forced_eos_token_id", "exponential_decay_length_penalty")),
    "guidance_scale": None,
    "return_dict_in_generate": False,
}


def generate(llm: Any, embeds_BNH: Tensor, mask_BN: Tensor, *, stopping_criteria: Sequence[Any] = (), **options: Any) -> Tensor:
    """The token ids (B, L) that `llm` goes on with after left-padded prompts; `options` are those of its own `generate`."""
    with _contiguous_input(llm.get_output_embeddings()):
        ids_BL: Tensor = llm.generate(
            inputs_embeds=embeds_BNH, attention_mask=mask_BN, stopping_criteria=[stop_at_loops, *stopping_criteria], **options
        )
    return ids_BL


def ends_in_loop(ids_BL: Tensor) -> Tensor:
    """True (B,) for each row whose last tokens are one n-gram, again and again (`LOOP_…`)."""
    found_B = torch.zeros(ids_BL.shape[0], dtype=torch.bool, device=ids_BL.device)
    for size in range(1, LOOP_LONGEST_NGRAM + 1):
        span = max(LOOP_MIN_TOKENS, LOOP_MIN_REPEATS * size)
        if span > ids_BL.shape[1]:
            break
        tail = ids_BL[:, -span:]
        found_B |= (tail[:, size:] == tail[:, :-size]).all(dim=1)
    return found_B


def stop_at_loops(ids_BL: Tensor, _scores: Any, **_: Any) -> Tensor:
    """A stopping criterion of transformers' `generate`."""
    return ends_in_loop(ids_BL)


@contextmanager
def _contiguous_input(head: nn.Module) -> Iterator[None]:
    """Let the head see the last position's states as one block.

    From a slice of them torch 2.13's matmul makes a batched product, for which a CPU copies the head once for each row: seconds
    and gigabytes. No issue is known of it.
    """
    hook = head.register_forward_pre_hook(lambda _head, inputs: (inputs[0].contiguous(), *inputs[1:]))
    try:
        yield
    finally:
        hook.remove()
