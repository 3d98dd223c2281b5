"""The steps at which a budget is measured, and the record of it."""

from __future__ import annotations

from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pytest

from kappaspeech.config.replay_config import ReplayConfig
from kappaspeech.training import budget
from kappaspeech.training.anchor_weight import AnchorWeight
from kappaspeech.training.budget import KeepBudget
from tests.unit.training.test_cadences import run, surroundings


@pytest.mark.parametrize(("every", "steps"), [(4, [4, 6]), (None, [2, 3, 4, 5, 6])])
def test_the_mean_over_languages_steers_and_is_recorded_and_the_last_step_is_always_measured(tmp_path, monkeypatch, every, steps):
    monkeypatch.setattr(budget, "averaged_weights", lambda _engine: nullcontext())
    monkeypatch.setattr(budget, "measure_distance", lambda _engine, pieces, _anchor, **_around: float(len(pieces)))
    options = ReplayConfig(texts={"de": "x"}, anchor_weight=0.5, forgetting_budget_nats=2.0, measure_every_steps=every)
    config: Any = SimpleNamespace(replay=options, training=SimpleNamespace(num_steps=6, alignment_steps=1))
    partitioned: Any = SimpleNamespace(engine=None, measured={"de": None, "en": None})
    records: list[dict[str, Any]] = []
    weight, log = AnchorWeight(options), SimpleNamespace(add_distance=records.append)
    around = surroundings(tmp_path)
    pieces = {"de": [(1, 2)] * 5, "en": [(1, 2)]}
    run(around, [KeepBudget(config, pieces, partitioned, weight, around, log=log)])
    assert [record["step"] for record in records] == steps
    assert all(record["kl_nats"] == 3.0 and record["languages"] == {"de": 5.0, "en": 1.0} for record in records)
    assert records[0]["anchor_weight"] > 0.5
    assert records[-1]["anchor_weight"] == weight.value
