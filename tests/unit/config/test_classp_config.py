"""The configuration's section on CLASSP."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from kappaspeech.config.classp_config import ClasspConfig
from kappaspeech.config.run_config import RunConfig
from kappaspeech.zero3.classp import Classp


def test_the_section_is_what_the_optimizer_takes_and_its_defaults_are_adagrads():
    assert Classp(**ClasspConfig().model_dump()) == Classp(threshold=0.0, power=2.0, epsilon=1e-10)


@pytest.mark.parametrize("changes", [{"threshold": -1e-9}, {"power": 0.5}, {"epsilon": 1e-46}, {"power": float("nan")}])
def test_what_would_move_nothing_rightly_is_refused(changes):
    with pytest.raises(ValidationError):
        ClasspConfig(**changes)


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
    run = {"run_dir": "r", "model": {"llm": "l", "encoder": "e"}, "data": {"train": [{"shards": "s"}]}}
    config = {**run, "training": {"num_steps": 1}, "optimizer": optimizer}
    assert RunConfig.model_validate(config).unheeded_by_classp is None
    said = RunConfig.model_validate({**config, "classp": {}}).unheeded_by_classp
    assert said is None if told is None else said is not None and told in said
