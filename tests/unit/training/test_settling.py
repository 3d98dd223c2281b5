"""Decisions that a run's configuration leaves to the memory."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from kappaspeech.config.run_config import read_run_config
from kappaspeech.model.llm import load_llm
from kappaspeech.training.run_plan import settle_by_plan
from tests import tiny


@pytest.fixture
def engine(home):
    """All of an engine that is asked here."""
    calls: list[str] = []
    llm = load_llm(str(home / "llm"), dtype=None)
    return SimpleNamespace(model=SimpleNamespace(llm=llm), persist_frozen=lambda: calls.append("whole"), calls=calls)


def configure(home, tmp_path, wanted):
    config = read_run_config(tiny.write_config(tmp_path / "run.yaml", home, tmp_path / "run"))
    return config.model_copy(update={"training": config.training.model_copy(update={"activation_checkpointing": wanted})})


def count_again(engine) -> int:
    return sum(layer.gradient_checkpointing for layer in engine.model.llm.model.layers)


def test_a_run_settles_by_its_plan_what_is_left_to_the_memory_and_says_so(home, tmp_path, engine):
    auto = configure(home, tmp_path, "auto")
    lines = settle_by_plan(auto, engine, {"num_recomputed_layers": 0, "keeps_frozen": True})
    assert lines == [
        "training.activation_checkpointing auto: 0 of 2 layers are computed again",
        "stage3_param_persistence_threshold auto: frozen weights stay whole on each rank",
    ]
    assert (count_again(engine), engine.calls) == (0, ["whole"])
    # what couldn't be planned needs what is least
    assert settle_by_plan(auto, engine, {"error": "no plan"}) == [
        "training.activation_checkpointing auto: 1 of 2 layers are computed again"
    ]
    assert (count_again(engine), engine.calls) == (1, ["whole"])


def test_what_is_said_is_left_alone(home, tmp_path, engine):
    assert settle_by_plan(configure(home, tmp_path, True), engine, {"num_recomputed_layers": 2, "keeps_frozen": False}) == []
    assert (count_again(engine), engine.calls) == (0, [])
