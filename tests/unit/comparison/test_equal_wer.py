"""Arms at equal WER, from run folders as training leaves them."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import pytest

from kappaspeech.comparison.curves import smooth
from kappaspeech.comparison.equal_wer import _loss_path, compare_at_equal, state_price
from kappaspeech.comparison.runs import Arm, read_run
from tests.made_runs import make_run


def make_arm(folder, name, *, forgetting, error_rate=0.02):
    runs = [
        make_run(folder / f"{name}{seed}", name, seed=seed, error_rate=error_rate, forgetting=forgetting, num_clips=30)
        for seed in (1, 2, 3)
    ]
    return Arm(name, tuple(map(read_run, runs)))


@pytest.fixture(scope="module")
def arms(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    return [make_arm(folder, "spares", forgetting=0.2), make_arm(folder, "forgets", forgetting=2.0)]


def test_the_arm_that_forgets_more_pays_more_at_every_level(arms):
    found = compare_at_equal(arms)
    assert [level["level"] for level in found["wer"]] == [0.8, 0.5, 0.3, 0.2, 0.1, 0.05]
    assert found["why_not"] is None
    for level in (*found["wer"], *found["loss"]):
        spares, forgets = level["arms"]
        assert spares["difference"] is None
        assert forgets["difference"]["mean"] == pytest.approx(forgets["mean"] - spares["mean"])
        assert forgets["difference"]["interval"][0] > 0
    prices = [level["arms"][1]["mean"] for level in found["wer"]]
    assert prices == sorted(prices)


def test_the_sentence_turns_its_interval_with_its_word(arms):
    more, less = (state_price(compare_at_equal(order)) for order in (arms, arms[::-1]))
    assert more[0].startswith("At 5 % WER, forgets has forgotten ")
    assert " more than spares (95 % over seeds and utterances: " in more[0]
    assert more[0].replace("forgets has", "spares has").replace("more than spares", "less than forgets") == less[0]
    assert "chance" not in more[0]
    single = [Arm(arm.name, arm.runs[:1]) for arm in arms]
    assert re.search(r"\(95 % over utterances: \S+ to \S+; 1 seed\)\.$", state_price(compare_at_equal(single))[0])


def test_equal_arms_cannot_be_told_apart(tmp_path):
    arms = [make_arm(tmp_path, name, forgetting=0.5) for name in ("one", "other")]
    assert state_price(compare_at_equal(arms))[0].endswith("it could be chance.")


def test_levels_that_one_arm_never_reaches_are_left_out_and_said(arms, tmp_path):
    deaf = make_arm(tmp_path, "deaf", forgetting=0.1, error_rate=1.0)
    for pair, who in (([arms[0], deaf], "spares and another arm"), ([deaf, arms[0]], "deaf and another arm"), ([deaf], "deaf")):
        found = compare_at_equal(pair)
        assert found["wer"] == []
        assert found["why_not"].endswith(f"was reached by all runs of {who}.")
        assert state_price(found) == []


def test_an_arm_that_learns_little_leaves_the_others_their_levels(arms, tmp_path):
    deaf, dull = (make_arm(tmp_path, name, forgetting=0.1, error_rate=rate) for name, rate in (("deaf", 1.0), ("dull", 0.4)))
    alone, found = compare_at_equal(arms), compare_at_equal([*arms, deaf, dull])
    assert [level["missed"] for level in found["wer"]] == [["deaf"]] * 2 + [["deaf", "dull"]] * 4
    assert [level["arms"][:2] for level in found["wer"]] == [level["arms"] for level in alone["wer"]]
    forgets, dull_said, deaf_said = state_price(found)
    assert forgets == state_price(alone)[0]
    assert dull_said.startswith("At 50 % WER, dull has forgotten ")
    assert deaf_said == "At no WER that spares reached can deaf be compared: not all their runs came so far."


def test_an_arm_of_the_adaptor_alone_does_not_raise_the_level_of_loss(tmp_path):
    """It can't forget, and its loss is far above the others'."""
    arms = [
        Arm(
            name,
            (read_run(make_run(tmp_path / name, name, seed=1, error_rate=0.2, selected=["model.layers.0.mlp.up_proj.weight"])),),
        )
        for name in ("one", "other")
    ]
    adaptor = read_run(make_run(tmp_path / "adaptor", "adaptor", seed=1, error_rate=0.2))
    adaptor = replace(adaptor, steps=[{**step, "loss_nats": step["loss_nats"] + 5} for step in adaptor.steps])
    (alone,), (level,) = (compare_at_equal(given)["loss"] for given in (arms, [*arms, Arm("adaptor", (adaptor,))]))
    assert level == {**alone, "missed": ["adaptor"]}


def test_a_test_set_that_changed_on_the_way_is_said(tmp_path):
    arm = make_arm(tmp_path, "one", forgetting=0.5)
    path = arm.runs[0].path / "hypotheses" / "step-000010.jsonl"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[1:]))
    found = compare_at_equal([arm, arm])
    assert found["wer"] == []
    assert "step-000010.jsonl is of other utterances" in found["why_not"]


def test_hypotheses_that_are_gone_are_said(tmp_path):
    arm = make_arm(tmp_path, "one", forgetting=0.5)
    (arm.runs[0].path / "hypotheses" / "step-000010.jsonl").unlink()
    found = compare_at_equal([arm, arm])
    assert found["wer"] == []
    assert "step-000010.jsonl" in found["why_not"]
    json.dumps(found)


def test_the_training_loss_at_an_evaluation_is_that_of_the_steps_before_it_though_some_were_skipped_or_aligned(tmp_path):
    """By the records, and not by a count of alignment steps that a resumed run may have changed."""
    run = read_run(make_run(tmp_path / "run", "a", seed=1, error_rate=0.2))
    aligned = [{**step, "objective": "alignment", "loss_nats": 99.0} for step in run.steps[:15]]
    kept = [step for step in run.steps[15:] if step["step"] not in (16, 17, 18, 31)]
    run = replace(run, steps=[*aligned, *kept])
    evaluated = [record["step"] for record in run.evaluations]
    before = [sum(step["step"] < each for step in kept) for each in evaluated]
    smoothed = smooth([step["loss_nats"] for step in kept])
    assert before[:4] == [0, 0, 2, 12]
    assert list(_loss_path(run).rates_RT[0]) == [smoothed[max(number - 1, 0)] for number in before]


def test_arms_that_aligned_the_adaptor_and_no_more_have_no_level_of_loss(arms):
    aligned = [
        Arm(arm.name, tuple(replace(run, steps=[{**step, "objective": "alignment"} for step in run.steps]) for run in arm.runs))
        for arm in arms
    ]
    found = compare_at_equal(aligned)
    assert found["loss"] == []
    assert len(found["wer"]) == 6
