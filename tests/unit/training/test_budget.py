"""The steps at which a budget is measured, and the record of it."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pytest

from kappaspeech.config.replay_config import ReplayConfig
from kappaspeech.errors import TrainingError
from kappaspeech.training import budget
from kappaspeech.training.anchor_weight import AnchorWeight
from kappaspeech.training.budget import KeepBudget
from tests.unit.training.test_cadences import surroundings

BUDGET_NATS = 2.0


class MovingBase:
    """An LLM that has moved some way from its base, and a base that it can be drawn back to."""

    # with a term of higher order, as far away as real ones are from their square
    def __init__(self, distance_after: Callable[[float], float] = lambda way: way**2 + 0.1 * way**4) -> None:
        self.way = 0.0
        self.ways: list[float] = []
        self._distance_after = distance_after

    def draw_back(self, share: float) -> None:
        self.way *= share
        self.ways.append(self.way)

    def distance(self, factor: float) -> float:
        return factor * self._distance_after(self.way)


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


@pytest.mark.parametrize(
    "distance_after",
    [
        lambda way: way**3,
        lambda way: way**6,
        lambda way: way**2 / 100 + way**12,
        # one that hardly grows any more
        lambda way: 10 - 10 * math.exp(-(way**2)),
        lambda way: 10 * math.log1p(100 * way**2),
    ],
)
def test_it_is_drawn_back_to_the_budget_however_a_distance_grows_and_never_beyond_where_it_was(
    tmp_path, monkeypatch, distance_after
):
    base = MovingBase(distance_after)
    (record,) = keep(tmp_path, monkeypatch, base, AnchorWeight(budget_of(2)), budget_of(2), [0.0, 3.0])
    assert record["moved_nats"] > 1.09 * BUDGET_NATS
    assert record["kl_nats"] == pytest.approx(BUDGET_NATS, rel=0.05) == base.distance(1.0)
    assert max(base.ways) < 3.0


@pytest.mark.parametrize("rounded", [0.0, -1e-9])
def test_weights_that_are_rounded_to_those_of_the_base_end_the_moves(tmp_path, monkeypatch, rounded):
    base = MovingBase(lambda way: way**2 if way > 2 else rounded)
    (record,) = keep(tmp_path, monkeypatch, base, AnchorWeight(budget_of(2)), budget_of(2), [0.0, 3.0])
    assert record["kl_nats"] == pytest.approx(rounded)
    assert len(base.ways) == 1


def test_a_distance_that_is_no_number_ends_the_run_with_what_to_do(tmp_path, monkeypatch):
    base = MovingBase(lambda way: way if way < 2 else math.nan)
    with pytest.raises(TrainingError, match=r"After step 2 .* is nan.*Lower optimizer\.llm_learning_rate"):
        keep(tmp_path, monkeypatch, base, AnchorWeight(budget_of(2)), budget_of(2), [0.0, 3.0])


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
