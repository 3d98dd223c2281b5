"""Settings that act on nothing are told, and those that act aren't."""

from __future__ import annotations

import pytest

from kappaspeech.config.run_config import RunConfig
from kappaspeech.config.unheeded import find_unheeded

SELECTED = {"unfreeze": {"selection": "s.json"}}
HOLDING = {
    "replay": {"texts": {"en": "r.txt"}},
    "ewc": {"texts": {"en": "r.txt"}},
    "classp": {"threshold": 1e-8},
}
TESTED = {"train": [{"shards": "s"}], "test": [{"shards": "t"}], "text": {"en": "t.txt"}}


def find(**sections):
    run = {"run_dir": "r", "model": {"llm": "l", "encoder": "e"}, "data": TESTED, "training": {"num_steps": 9}}
    return [item.told for item in find_unheeded(RunConfig.model_validate({**run, **sections}))]


@pytest.mark.parametrize(
    ("optimizer", "told"),
    [
        ({"llm_learning_rate": 1e-3, "clip_norm": 2.0}, None),
        ({"betas": (0.9, 0.98), "weight_decay": 0}, None),
        ({"weight_decay": 0.1}, "optimizer.weight_decay 0.1 is AdamW's, and with classp the adaptor's alone"),
        ({"weight_decay": 0.1, "epsilon": 1e-6}, "optimizer.epsilon 1e-06 and optimizer.weight_decay 0.1 are AdamW's"),
        (
            {"weight_decay": 0.1, "betas": (0.9, 0.95), "epsilon": 1e-6},
            "optimizer.betas [0.9, 0.95], optimizer.epsilon 1e-06 and optimizer.weight_decay 0.1 are AdamW's",
        ),
    ],
)
def test_what_the_optimizer_is_asked_for_and_classp_does_not_heed_is_told(optimizer, told):
    assert find(optimizer=optimizer, **SELECTED) == []
    said = find(optimizer=optimizer, classp={}, **SELECTED)
    assert len(said) == (told is not None)
    assert all(told in sentence for sentence in said)


def test_what_holds_the_llm_is_told_in_a_run_that_trains_none_of_it():
    assert find() == []
    assert find(**SELECTED, **HOLDING) == []
    assert find(unfreeze={"mode": "all"}, **HOLDING) == []
    (told,) = find(**HOLDING)
    assert told == "replay, ewc and classp are without effect: unfreeze.mode is adaptor, so no tensor of the LLM moves"
    (told,) = find(ewc=HOLDING["ewc"])
    assert told.startswith("ewc is without effect: unfreeze.mode is adaptor")


def test_a_run_that_aligns_the_adaptor_and_no_more_heeds_nothing_that_comes_after():
    alone = {"num_steps": 9, "alignment_steps": 9}
    assert find(training=alone) == []
    assert find(training={"num_steps": 9, "alignment_steps": 8, "alignment_weight": 0.5}, **SELECTED, **HOLDING) == []
    told = find(training={**alone, "alignment_weight": 0.5}, **SELECTED, replay=HOLDING["replay"])
    assert told == [
        "unfreeze.mode selection and replay are without effect: training.alignment_steps is all of training.num_steps, 9, so no "
        "tensor of the LLM moves",
        "training.alignment_weight 0.5 is without effect: it counts after training.alignment_steps, and these are all of "
        "training.num_steps, 9",
    ]


def test_a_distance_that_no_budget_asks_for_is_never_measured():
    replay = {"texts": {"en": "r.txt"}, "anchor_weight": 0.1, "measure_every_steps": 5}
    (told,) = find(**SELECTED, replay=replay)
    assert told == "replay.measure_every_steps 5 is without effect: there is no replay.forgetting_budget_nats"
    assert find(**SELECTED, replay={**replay, "forgetting_budget_nats": 0.1}) == []


def test_nothing_is_evaluated_without_test_speech():
    untested = {"train": [{"shards": "s"}], "text": {"en": "t.txt"}}
    often = {"num_steps": 9, "evaluate_every_steps": 3, "evaluate_every_minutes": 1.0}
    assert find(training=often) == []
    (told,) = find(data={**untested, "tasks": {"en": "q.jsonl"}}, training=often)
    assert told == (
        "data.text, data.tasks, training.evaluate_every_steps and training.evaluate_every_minutes are without effect: data.test "
        "is empty, and a run without it isn't evaluated"
    )
    # a budget measures these texts by itself
    budget = {"texts": {"en": "r.txt"}, "anchor_weight": 0.1, "forgetting_budget_nats": 0.1}
    assert find(data=untested, **SELECTED, replay=budget) == []
