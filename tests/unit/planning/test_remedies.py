"""Remedies for a plan that doesn't fit."""

from __future__ import annotations

from pathlib import Path

import pytest

from kappaspeech.config.run_config import read_run_config
from kappaspeech.planning.duration import Rates
from kappaspeech.planning.meta_model import build_meta_model
from kappaspeech.planning.planner import Planner
from kappaspeech.planning.remedies import Remedy
from tests import tiny

REPOSITORY = Path(__file__).parents[3]
RATES = Rates(1e12, 1e9)


@pytest.fixture
def config(home, tmp_path):
    return read_run_config(tiny.write_config(tmp_path / "run.yaml", home, tmp_path / "run"))


def test_a_plan_names_what_would_make_it_fit(config):
    planner = Planner(config, modules=build_meta_model(config))
    plan = planner.plan(1, rates=RATES, prompt_tokens=20)
    remedies: list[Remedy] = planner.find_remedies(plan.assumptions)
    assert remedies
    assert all(remedy.peak_bytes < plan.peak_bytes for remedy in remedies)
    assert any("reduce_bucket_size" in remedy.change for remedy in remedies)


@pytest.mark.parametrize("preset", ["zero3_offload_optimizer", "zero3_offload"])
def test_a_preset_that_is_named_as_a_remedy_needs_what_the_remedy_says(config, preset):
    def planner(name: str) -> Planner:
        chosen = config.model_copy(update={"deepspeed": str(REPOSITORY / f"ds_configs/{name}.json")})
        return Planner(chosen, modules=build_meta_model(config))

    before, after = (planner(name).plan(1, rates=RATES, prompt_tokens=20) for name in ("zero3", preset))
    (named,) = [item for item in planner("zero3").find_remedies(before.assumptions) if f"{preset}.json" in item.change]
    assert (named.peak_bytes, named.host_bytes) == (after.peak_bytes, after.host_bytes)
    assert after.peak_bytes < before.peak_bytes
