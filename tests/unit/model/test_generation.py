"""Text from embedded prompts by the LLM's own `generate`."""

from __future__ import annotations

import torch

from kappaspeech.model.generation import GREEDY, LOOP_MIN_TOKENS, generate
from tests.families import make_llm


def test_a_row_that_loops_is_ended_and_other_criteria_still_count():
    llm = make_llm("Llama")
    with torch.no_grad():
        # whatever was said, all tokens are alike, and the first is taken
        llm.lm_head.weight.zero_()
        llm.model.norm.weight.zero_()
    embeds, mask = torch.randn(1, 5, 32), torch.ones(1, 5, dtype=torch.long)
    options = {**GREEDY, "max_new_tokens": 60, "eos_token_id": 1, "pad_token_id": 1}
    assert generate(llm, embeds, mask, **options).shape == (1, LOOP_MIN_TOKENS)

    def after_three(ids, _scores, **_):
        return torch.full((len(ids),), ids.shape[1] >= 3)

    assert generate(llm, embeds, mask, stopping_criteria=[after_three], **options).shape == (1, 3)
