"""The points that reach a logger, through resumptions."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import pytest

from kappaspeech.config.training_config import TrainingConfig
from kappaspeech.loggers import curves
from kappaspeech.loggers.curves import LOGGERS, Curves
from kappaspeech.loggers.logger import Logger, Point, RunToShow
from kappaspeech.needed_packages import PACKAGES


class Kept(Logger):
    def __init__(self, _run: RunToShow) -> None:
        self.points: list[Point] = []

    def add(self, point: Point) -> None:
        self.points.append(point)

    def flush(self) -> None:
        pass

    def close(self, *, failed: bool) -> None:
        pass


@pytest.fixture
def made(monkeypatch) -> dict[str, Kept]:
    """The loggers that a run's curves open, by name, in the place of those that write."""
    found: dict[str, Kept] = {}

    def opener(name: str):
        return lambda run: found.setdefault(name, Kept(run))

    monkeypatch.setattr(curves, "LOGGERS", {name: opener(name) for name in LOGGERS})
    return found


def describe(name: str) -> RunToShow:
    return RunToShow(Path(name), "id", "run", {}, 0)


def test_the_configuration_names_the_loggers_that_there_are():
    (names,) = get_args(TrainingConfig.model_fields["loggers"].annotation)
    assert set(get_args(names)) == set(LOGGERS) <= set(PACKAGES)


def test_no_step_is_told_twice_but_to_one_that_takes_it_back(made):
    shown = Curves(["tensorboard", "mlflow"], describe, told={"step": 4, "evaluation": 2, "distance": -1})
    for step in (3, 4, 5):
        shown.add("step", step, {"train/x": 1.0})
    shown.add("evaluation", 2, {"test/x": 1.0})
    shown.add("evaluation", 4, {"test/x": 1.0})
    shown.add("distance", 0, {"budget/x": 1.0})
    shown.close(failed=False)
    assert [point.step for point in made["mlflow"].points] == [5, 4, 0]
    assert [point.step for point in made["tensorboard"].points] == [3, 4, 5, 2, 4, 0]


def test_all_loggers_end_before_one_is_waited_for(monkeypatch):
    told: list[str] = []

    class Listening:
        def __init__(self, _name: str, _open_logger: object) -> None: ...

        def end(self, *, failed: bool, hurried: bool) -> None:
            told.append(f"end {failed} {hurried}")

        def close(self) -> None:
            told.append("wait")

    monkeypatch.setattr(curves, "Beside", Listening)
    Curves(["wandb", "mlflow"], describe, told={}).close(failed=True)
    assert told == ["end True False", "end True False", "wait", "wait"]
    told.clear()
    Curves(["wandb"], describe, told={}).close(failed=False, hurried=True)
    assert told == ["end False True", "wait"]


def test_turns_only_grow_and_are_the_same_after_a_resumption(made):
    shown = Curves(["wandb"], describe, told={})
    shown.add("evaluation", 0, {})
    for step in range(3):
        shown.add("step", step, {})
        shown.add("distance", step + 1, {})
    shown.close(failed=False)
    assert [(point.step, point.turn) for point in made["wandb"].points] == [
        (0, 0),
        (0, 1),
        (1, 2),
        (1, 3),
        (2, 4),
        (2, 5),
        (3, 6),
    ]
