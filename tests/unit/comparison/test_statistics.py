"""Means, intervals and paired differences of arms over seeds."""

from __future__ import annotations

from dataclasses import replace

import pytest

from kappaspeech.comparison.runs import Arm, read_run
from kappaspeech.comparison.statistics import check_same_utterances, compare_arms, measure_arm, spread
from kappaspeech.errors import InputError
from kappaspeech.evaluation.wer import compare_hypotheses
from tests.made_runs import make_run


@pytest.fixture(scope="module")
def arms(tmp_path_factory) -> tuple[Arm, Arm]:
    folder = tmp_path_factory.mktemp("runs")
    made = [
        Arm(
            name,
            tuple(read_run(make_run(folder / f"{name}{seed}", name, seed=seed, error_rate=rate)) for seed in (1, 2, 3)),
        )
        for name, rate in (("better", 0.1), ("worse", 0.25))
    ]
    return made[0], made[1]


def of_seed(arm: Arm, index: int) -> Arm:
    return Arm(arm.name, arm.runs[index : index + 1])


def test_one_seed_is_compared_as_two_sets_of_hypotheses_are(arms):
    first, second = (of_seed(arm, 0) for arm in arms)
    ours = compare_arms(first, second)
    theirs = compare_hypotheses(first.runs[0].hypotheses, second.runs[0].hypotheses)
    assert ours["mean"]["sd"] is None
    pairs = [(ours["mean"], theirs["mean"]), *((ours["languages"][name], theirs["languages"][name]) for name in ("de", "en"))]
    for mine, yours in pairs:
        assert mine["mean"] == pytest.approx(yours["difference"])
        assert mine["interval"] == pytest.approx(yours["interval"])
        assert mine["p_value"] == yours["p_value"]


def test_over_seeds_the_gap_is_their_mean_and_more_seeds_say_it_more_surely(arms):
    first, second = arms
    single = [compare_arms(of_seed(first, i), of_seed(second, i))["mean"] for i in range(3)]
    whole = compare_arms(first, second)["mean"]
    assert whole["by_seed"] == pytest.approx([gap["mean"] for gap in single])
    assert whole["mean"] == pytest.approx(sum(whole["by_seed"]) / 3)
    widths = [high - low for low, high in (gap["interval"] for gap in single)]
    assert whole["interval"][1] - whole["interval"][0] < sum(widths) / 3


def test_an_arm_does_not_differ_from_itself(arms):
    gap = compare_arms(arms[0], arms[0])["mean"]
    assert (gap["mean"], gap["interval"], gap["p_value"]) == (0, [0, 0], 1)


def test_an_arms_wer_is_that_of_its_evaluations(arms):
    measured = measure_arm(arms[0])
    assert measured["mean"]["by_seed"] == pytest.approx([run.last["wer"]["mean_wer"] for run in arms[0].runs])
    for language in ("de", "en"):
        rates = [run.last["wer"]["languages"][language]["wer"] for run in arms[0].runs]
        assert measured["languages"][language]["by_seed"] == pytest.approx(rates)


def test_spread_is_the_sample_standard_deviation():
    assert spread([1.0, 3.0]) == {"mean": 2.0, "sd": pytest.approx(2**0.5), "by_seed": [1.0, 3.0]}
    assert spread([5.0])["sd"] is None


def test_other_utterances_are_refused(arms):
    run = arms[1].runs[0]
    other = Arm("worse", (replace(run, hypotheses=run.hypotheses[1:]),))
    with pytest.raises(InputError, match="different utterances"):
        check_same_utterances([arms[0], other])
    with pytest.raises(InputError, match="reference word"):
        measure_arm(Arm("none", (replace(run, hypotheses=[]),)))
