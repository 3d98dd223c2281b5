"""Held-out R² of what may predict forgetting, on simulated runs whose answer is known."""

from __future__ import annotations

import json
import math
import random
import runpy
import sys
from pathlib import Path
from statistics import fmean

import numpy as np
import pytest

from kappaspeech.comparison.predictors import COUNT, describe_runs, predict, to_json
from kappaspeech.comparison.runs import read_run
from kappaspeech.errors import InputError
from kappaspeech.scan.ranking import KappaRanking
from tests.made_runs import TENSORS, make_run

REPOSITORY = Path(__file__).parents[3]


def by_name(found):
    return {item.name: item for item in found}


def alone(number: int):
    """Every run a selection of its own."""
    return np.arange(number)


@pytest.mark.parametrize("explained", [0.3, 0.8])
def test_r2_and_its_interval_are_those_of_the_simulation(explained):
    rng = np.random.default_rng(7)
    covered, estimates = 0, []
    for _ in range(25):
        causes, noise = rng.standard_normal((2, 60))
        drift = math.sqrt(explained) * causes + math.sqrt(1 - explained) * noise
        (found,) = predict({"cause": causes[:, None]}, drift, alone(60))
        estimates.append(found.r2)
        low, high = found.interval
        covered += low <= explained <= high
    assert fmean(estimates) == pytest.approx(explained, abs=0.07)
    # 95 % is meant; fewer than 20 of 25 would be a chance of 1 in 600
    assert covered >= 20


def test_what_causes_nothing_predicts_nothing_and_adds_nothing_to_what_does():
    rng = np.random.default_rng(3)
    cause, other, counts = rng.standard_normal((3, 90))
    drift = cause + 0.5 * counts + 0.2 * rng.standard_normal(90)
    found = by_name(predict({COUNT: counts[:, None], "cause": cause[:, None], "other": other[:, None]}, drift, alone(90)))
    assert [found["cause"].r2 > 0.6, found[COUNT].r2 > 0.05, found["other"].r2 < 0.05] == [True] * 3
    assert found["other"].interval[0] < 0
    assert found["cause"].beyond_interval[0] > 0.5
    assert found["other"].beyond_count < 0.05
    assert found["other"].beyond_interval[0] < 0 < found["cause"].beyond_count
    assert found[COUNT].beyond_count is None


def test_seeds_of_one_selection_are_held_out_together():
    """Columns that tell the selections apart would foretell a seed from its sister."""
    rng = np.random.default_rng(5)
    groups = np.repeat(np.arange(20), 3)
    drift = rng.standard_normal(20)[groups] + 0.01 * rng.standard_normal(60)
    one_hot = np.eye(20)[groups]
    assert predict({"which": one_hot}, drift, groups)[0].r2 == pytest.approx(0, abs=0.01)
    # as each for itself it would look like a law
    assert predict({"which": one_hot}, drift, alone(60))[0].r2 > 0.7


def test_too_few_selections_are_refused():
    with pytest.raises(InputError, match="trained 3 different"):
        predict({"x": np.zeros((6, 1))}, np.zeros(6), np.array([0, 0, 1, 1, 2, 2]))


def test_a_column_that_doesnt_vary_is_as_good_as_none():
    drift = np.random.default_rng(1).standard_normal(30)
    (found,) = predict({"same": np.ones((30, 1))}, drift, alone(30))
    assert found.r2 == pytest.approx(0, abs=1e-12)


def make_runs(home, folder):
    """Fourteen selections of two seeds each, in which text drifts as the mean of log κ says."""
    ranking = KappaRanking.read(home / "ranking.json")
    kappas = {item.name: item.kappa for item in ranking.candidates("kappa", experts="each") if item.name in TENSORS}
    runs = []
    for number in range(14):
        chosen = random.Random(number).sample(sorted(kappas), 2 + number % 4)
        level = fmean(math.log(kappas[name]) for name in chosen)
        for seed in (17, 18):
            path = folder / f"{number}-{seed}"
            # the made run's KL at its end is log(1 + forgetting)
            forgetting = math.expm1(math.exp(-4 + 0.5 * level + 0.01 * seed))
            runs.append(make_run(path, f"arm {number}", seed=seed, error_rate=0.2, forgetting=forgetting, selected=chosen))
    return ranking, runs


def test_runs_are_described_by_their_selected_tensors_and_predicted_by_what_moved_them(home, tmp_path):
    ranking, folders = make_runs(home, tmp_path)
    predictors, drift, groups = describe_runs([read_run(folder) for folder in folders], {"": ranking})
    assert len(drift) == 28
    assert len(set(groups.tolist())) == 14
    assert np.allclose(predictors["module type"].sum(axis=1), 1)
    found = by_name(predict(predictors, drift, groups))
    assert {"kappa", "kappa-over-gaussian", "entropy-deficit", "stable-rank", "module type", COUNT} <= set(found)
    assert found["kappa"].r2 > 0.9
    assert found["kappa"].r2 == max(item.r2 for item in found.values() if not item.name.startswith("kappa-"))
    assert json.loads(json.dumps(to_json(list(found.values()))))[0]["predictor"]
    whole = make_run(tmp_path / "adaptor", "adaptor", seed=17, error_rate=0.2)
    with pytest.raises(InputError, match="trained no selection"):
        describe_runs([read_run(whole)], {"": ranking})


def test_the_benchmark_writes_what_it_finds_and_refuses_another_checkpoints_ranking(home, tmp_path, monkeypatch, capsys):
    monkeypatch.syspath_prepend(str(REPOSITORY / "benchmarks"))
    benchmark = runpy.run_path(str(REPOSITORY / "benchmarks/forgetting.py"))
    ranking, folders = make_runs(home, tmp_path)
    words = ["forgetting.py", str(home / "ranking.json"), *map(str, folders), "--output", str(tmp_path / "found.json")]
    monkeypatch.setattr(sys, "argv", words)
    with pytest.raises(SystemExit, match="is of another checkpoint than the runs"):
        benchmark["main"]()
    for folder in folders:
        path = folder / "run.json"
        path.write_text(path.read_text().replace("0" * 64, ranking.checkpoint_digest))
    benchmark["main"]()
    assert "kappa-over-gaussian" in capsys.readouterr().out
    found = json.loads((tmp_path / "found.json").read_text())
    assert (found["num_runs"], found["num_selections"]) == (28, 14)
    assert [run["run"] for run in found["runs"]] == [folder.name for folder in folders]
    assert max(item["held_out_r2"] for item in found["predictors"]) > 0.9
