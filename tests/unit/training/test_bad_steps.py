"""Bad steps: the test for them, what is said of them, and the number that ends a run."""

from __future__ import annotations

import json
import math

import pytest

from kappaspeech.config.training_config import TrainingConfig
from kappaspeech.training.bad_steps import BadStep, BadSteps
from kappaspeech.zero3.engine import StepResult
from kappaspeech.zero3.trained_states import Updates

GOOD = StepResult(loss_sum_nats=3.0, grad_norm=2.0, is_applied=True)
BAD = StepResult(loss_sum_nats=math.nan, grad_norm=math.inf, is_applied=False)


def rule(**settings) -> BadSteps:
    return BadSteps(TrainingConfig(num_steps=100, **settings))


def judge(steps: BadSteps, step: int, result: StepResult) -> BadStep | None:
    return steps.judge(step, result, loss_sum_nats=result.loss_sum_nats, keys=["b", "a"])


def test_a_bad_step_is_recorded_with_its_samples_and_ends_a_run_that_does_not_skip():
    steps = rule()
    assert judge(steps, 1, GOOD) is None
    bad = judge(steps, 2, BAD)
    assert bad is not None
    assert bad.record == {"step": 2, "loss_sum_nats": None, "grad_norm": None, "norm_limit": None, "keys": ["a", "b"]}
    # as a line of JSON that any reader takes
    assert json.loads(json.dumps(bad.record, allow_nan=False)) == bad.record
    assert bad.why_stop is not None
    assert bad.why_stop.startswith("Step 2 has loss nan nats and gradient norm inf; it has changed no weight.")
    assert "the first are a, b" in bad.why_stop
    assert steps.num_skipped == 1


def test_skipped_steps_end_a_run_once_too_many_stand_in_a_row():
    steps = rule(on_bad_loss="skip", max_skipped_steps=2)
    kinds = [BAD, BAD, GOOD, BAD, BAD, BAD]
    judged = [judge(steps, number, result) for number, result in enumerate(kinds)]
    assert [bad.why_stop is not None if bad else None for bad in judged] == [False, False, None, False, False, True]
    assert judged[-1] is not None
    assert "it is bad step number 3 in a row" in str(judged[-1].why_stop)
    assert steps.num_skipped == 5


def test_a_loss_that_is_no_number_of_a_step_that_was_taken_ends_a_run_even_if_it_skips():
    bad = judge(rule(on_bad_loss="skip"), 1, StepResult(math.nan, 1.0, is_applied=True))
    assert bad is not None
    assert "it has moved the weights" in str(bad.why_stop)
    assert bad.record["grad_norm"] == 1.0


def test_the_limit_is_a_multiple_of_the_median_of_the_last_good_norms():
    steps = rule(explode_factor=4.0)
    for number in range(19):
        judge(steps, number, StepResult(1.0, 1.0, is_applied=True))
    # too few to say what is usual
    assert steps.norm_limit == math.inf
    judge(steps, 19, StepResult(1.0, 1.0, is_applied=True))
    assert steps.norm_limit == 4.0
    judge(steps, 20, StepResult(1.0, 1000.0, is_applied=False))
    assert steps.norm_limit == 4.0
    for number in range(50):
        judge(steps, 21 + number, StepResult(1.0, 3.0, is_applied=True))
    assert steps.norm_limit == 12.0
    assert rule().norm_limit == math.inf


def test_norms_of_the_alignment_set_no_limit_for_the_loss_that_follows():
    steps = rule(explode_factor=4.0, alignment_steps=25)
    for number in range(24):
        judge(steps, number, StepResult(1.0, 1.0, is_applied=True))
    assert steps.norm_limit == 4.0
    judge(steps, 24, StepResult(1.0, 1.0, is_applied=True))
    steps.begin(25)
    assert steps.norm_limit == math.inf


@pytest.mark.parametrize(("before", "now"), [(50, 10), (10, 50)])
def test_norms_of_another_loss_set_no_limit_either_if_a_run_resumes_with_another_number_of_alignment_steps(before, now):
    steps = rule(explode_factor=4.0, alignment_steps=before)
    for number in range(10, 35):
        steps.begin(number)
        judge(steps, number, GOOD)
    again = rule(explode_factor=4.0, alignment_steps=before)
    again.restore(json.loads(json.dumps(steps.to_json())))
    again.begin(35)
    assert again.norm_limit == steps.norm_limit == 8.0
    again = rule(explode_factor=4.0, alignment_steps=now)
    again.restore(json.loads(json.dumps(steps.to_json())))
    again.begin(35)
    assert again.norm_limit == math.inf


def test_the_llm_is_updated_by_good_steps_after_the_alignment_alone():
    steps = rule(on_bad_loss="skip", alignment_steps=3)
    for number, result in enumerate([GOOD, BAD, GOOD, GOOD, BAD, BAD, GOOD]):
        judge(steps, number, result)
    assert steps.num_updates(7) == Updates(adaptor=4, llm=2)
    again = rule(on_bad_loss="skip", alignment_steps=3)
    again.restore(json.loads(json.dumps(steps.to_json())))
    assert again.num_updates(7) == Updates(adaptor=4, llm=2)
    # within the alignment
    steps = rule(alignment_steps=3)
    judge(steps, 0, GOOD)
    assert steps.num_updates(1) == Updates(adaptor=1, llm=0)


@pytest.mark.parametrize("alignment_steps", [0, 1, 5, 50])
def test_updates_are_counted_as_they_were_made_though_a_run_resumes_with_another_number_of_alignment_steps(alignment_steps):
    steps = rule(on_bad_loss="skip", alignment_steps=3)
    for number, result in enumerate([GOOD, BAD, GOOD, GOOD, BAD, GOOD]):
        judge(steps, number, result)
    again = rule(on_bad_loss="skip", alignment_steps=alignment_steps)
    again.restore(json.loads(json.dumps(steps.to_json())))
    assert again.num_updates(6) == Updates(adaptor=4, llm=2)
    # these go on by the new number
    judge(again, 6, GOOD)
    assert again.num_updates(7) == Updates(adaptor=5, llm=3 if alignment_steps < 7 else 2)


def test_a_checkpoint_of_a_version_without_alignment_counts_every_good_step_for_the_llm():
    again = rule(alignment_steps=50)
    again.restore({"norms": [1.0], "num_in_a_row": 0, "num_skipped": 2})
    assert again.num_updates(10) == Updates(adaptor=8, llm=8)


def test_a_step_above_the_limit_is_told_with_it():
    steps = rule(explode_factor=4.0)
    for number in range(20):
        judge(steps, number, GOOD)
    bad = judge(steps, 20, StepResult(5.0, 9.0, is_applied=False))
    assert bad is not None
    assert (bad.record["grad_norm"], bad.record["norm_limit"]) == (9.0, 8.0)
    assert "gradient norm 9 (the limit is 8)" in str(bad.why_stop)


@pytest.mark.parametrize("kinds", [[GOOD] * 25, [GOOD] * 25 + [BAD], [BAD, BAD]])
def test_a_run_that_goes_on_judges_as_one_that_was_never_stopped(kinds):
    settings = {"explode_factor": 4.0, "on_bad_loss": "skip", "max_skipped_steps": 2}
    whole, again = rule(**settings), rule(**settings)
    for number, result in enumerate(kinds):
        judge(whole, number, result)
    again.restore(json.loads(json.dumps(whole.to_json())))
    assert again.norm_limit == whole.norm_limit
    for number, result in enumerate([BAD, GOOD, BAD, BAD, BAD]):
        assert judge(again, number, result) == judge(whole, number, result)
    assert again.to_json() == whole.to_json()
