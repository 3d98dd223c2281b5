"""The base's word on texts: kept from before a training, and the distance from it that an evaluation measures, too."""

from __future__ import annotations

import copy
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from kappaspeech.evaluation.forgetting import score_windows
from kappaspeech.model.llm import load_llm
from kappaspeech.training.anchor import Anchor, ask_base, keep_head, measure_distance
from tests.unit.training.test_cadences import surroundings

TEXTS = [list(range(20, 70)), [9, 8, 7], list(range(100, 117))]


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


@pytest.mark.parametrize("trained", ["model.layers.0.mlp.up_proj.weight", "lm_head.weight"])
def test_the_distance_is_that_of_an_evaluation(home, tmp_path, trained):
    llm = load_llm(str(home / "llm"), dtype=torch.float32).requires_grad_(False)
    parameter = llm.get_parameter(trained).requires_grad_()
    # an engine of one rank is its model
    model = SimpleNamespace(llm=llm, eval=llm.eval)
    engine: Any = SimpleNamespace(model=model, device=torch.device("cpu"), release_gathered=lambda: None)
    around, head = surroundings(tmp_path), keep_head(llm)
    anchor = ask_base(engine, dict(enumerate(TEXTS)), head=head, around=around)
    assert measure_distance(engine, TEXTS, anchor, around=around) == pytest.approx(0, abs=1e-6)
    before = copy.deepcopy(parameter.data)
    with torch.no_grad():
        parameter += 0.5 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(5))
    after = parameter.data

    @contextmanager
    def base():
        parameter.data = before
        yield
        parameter.data = after

    _, kl_nats = score_windows(llm, TEXTS, count=len(TEXTS), base=base)
    distance = measure_distance(engine, TEXTS, anchor, around=around)
    assert distance == pytest.approx(kl_nats / sum(len(text) - 1 for text in TEXTS), rel=1e-4)
    assert distance > 1e-3
