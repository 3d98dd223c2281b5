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
from tests.unit.training.test_cadences import surroundings

BUDGET_NATS = 2.0


class MovingBase:
    """An LLM that has moved by √distance from its base, and a base that it can be drawn back to."""

    def __init__(self) -> None:
        self.way = 0.0

    def draw_back(self, share: float) -> None:
        self.way *= share

    def distance(self, factor: float) -> float:
        # with a term of higher order, as far away as real ones are from their square
        return factor * (self.way**2 + 0.1 * self.way**4)


def keep(tmp_path, monkeypatch, base: MovingBase, weight: AnchorWeight, options: ReplayConfig, moves: list[float]):
    """The records of a run in which the LLM moves by `moves` after each step but the first, with twice the distance in German."""
    pieces = {"de": [(1, 2)] * 4, "en": [(1, 2)] * 2}

    monkeypatch.setattr(budget, "averaged_weights", lambda _engine: nullcontext())
    monkeypatch.setattr(budget, "measure_distance", lambda _engine, cut, _anchor, **_around: base.distance(len(cut) / 3))
    config: Any = SimpleNamespace(replay=options, training=SimpleNamespace(num_steps=len(moves), alignment_steps=1))
    partitioned: Any = SimpleNamespace(engine=None, measured={"de": None, "en": None}, base=base)
    records: list[dict[str, Any]] = []
    log: Any = SimpleNamespace(add_distance=records.append)
    cadence = KeepBudget(config, pieces, partitioned, weight, surroundings(tmp_path), log=log)
    for step, move in enumerate(moves, start=1):
        base.way += move
        assert cadence.after(step) is None
    return records


def budget_of(every: int | None) -> ReplayConfig:
    return ReplayConfig(texts={"de": "x"}, anchor_weight=0.5, forgetting_budget_nats=BUDGET_NATS, measure_every_steps=every)


@pytest.mark.parametrize(("every", "steps"), [(4, [4, 6]), (None, [2, 3, 4, 5, 6])])
def test_the_mean_over_languages_steers_and_is_recorded_and_the_last_step_is_always_measured(tmp_path, monkeypatch, every, steps):
    base, weight = MovingBase(), AnchorWeight(budget_of(every))
    records = keep(tmp_path, monkeypatch, base, weight, budget_of(every), [0.0, 1.35, 0.0, 0.0, 0.0, 0.0])
    distance = 1.35**2 + 0.1 * 1.35**4
    assert [record["step"] for record in records] == steps
    assert all(record["kl_nats"] == record["moved_nats"] == pytest.approx(distance) for record in records)
    assert records[0]["languages"] == {"de": pytest.approx(distance * 4 / 3), "en": pytest.approx(distance * 2 / 3)}
    assert records[0]["anchor_weight"] > 0.5
    assert records[-1]["anchor_weight"] == weight.value


def test_a_run_that_would_end_beyond_its_budget_is_drawn_back_to_it(tmp_path, monkeypatch):
    base = MovingBase()
    records = keep(tmp_path, monkeypatch, base, AnchorWeight(budget_of(2)), budget_of(2), [0.0, 3.0, 0.0, 1.0])
    assert records[0]["kl_nats"] == records[0]["moved_nats"] > 10
    assert records[1]["moved_nats"] == pytest.approx(16 + 0.1 * 256)
    assert records[1]["kl_nats"] == pytest.approx(BUDGET_NATS, rel=0.05) == base.distance(1.0)


def test_once_a_greater_weight_is_futile_the_llm_is_drawn_back_at_each_measurement(tmp_path, monkeypatch):
    weight = AnchorWeight(budget_of(1))
    # it comes nearer at first, and then goes away under whatever weight
    records = keep(tmp_path, monkeypatch, MovingBase(), weight, budget_of(1), [0.0, 3.0, -1.0, *[0.3] * 9])
    assert weight.is_futile
    is_drawn = [record["kl_nats"] < record["moved_nats"] for record in records]
    first = is_drawn.index(True)
    assert 2 < first < len(records) - 2
    assert all(is_drawn[first:])
    assert all(record["kl_nats"] == pytest.approx(BUDGET_NATS, rel=0.05) for record in records[first:])
