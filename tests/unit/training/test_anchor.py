"""The base's head, kept where the LLM's own trains."""

from __future__ import annotations

import torch

from kappaspeech.model.llm import load_llm
from kappaspeech.training.anchor import Anchor, keep_head


def test_a_head_is_kept_only_where_it_trains(home):
    llm = load_llm(str(home / "llm"), dtype=torch.float32).requires_grad_(False)
    assert keep_head(llm) is None
    llm.get_output_embeddings().requires_grad_(True)
    kept = keep_head(llm)
    before = llm.get_output_embeddings().weight.detach().clone()
    with torch.no_grad():
        llm.get_output_embeddings().weight.zero_()
    assert torch.equal(kept.weight, before)
    assert not kept.weight.requires_grad


def test_pieces_follow_one_another_in_the_order_in_which_they_are_asked_for():
    anchor = Anchor({0: torch.zeros(2, 3), 4: torch.ones(1, 3)}, None)
    assert anchor.keep([4, 0], torch.device("cpu")).states_KH[:, 0].tolist() == [1, 0, 0]
