"""Text from embedded prompts by the LLM's own `generate`."""

from __future__ import annotations

import pytest
import torch

from kappaspeech.model.generation import GREEDY, LOOP_MIN_TOKENS, generate
from tests.families import CHAT_DEFAULTS, make_llm


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


@pytest.mark.parametrize("num_beams", [1, 3])
def test_no_default_that_a_checkpoint_brings_changes_a_text(num_beams):
    llm, embeds = make_llm("Llama"), torch.randn(2, 5, 32, generator=torch.Generator().manual_seed(1))
    mask = torch.ones(2, 5, dtype=torch.long)
    options = {**GREEDY, "num_beams": num_beams, "max_new_tokens": 8, "eos_token_id": 1, "pad_token_id": 1}
    plain = generate(llm, embeds, mask, **options)
    for name, value in CHAT_DEFAULTS.items():
        setattr(llm.generation_config, name, value)
    assert torch.equal(generate(llm, embeds, mask, **options), plain)
