"""The number of a recipe's steps that `--minutes` gives."""

from __future__ import annotations

import json

import pytest

from kappaspeech.config.training_config import TrainingConfig
from kappaspeech.demo.pace import Pace, choose_num_steps, describe_choice, read_step_seconds
from kappaspeech.errors import InputError


def choose(minutes: float, *, step_seconds: float = 1.0, start_seconds: float = 20.0, recipe_num_steps: int = 560) -> int:
    pace = Pace(step_seconds, start_seconds, spent_seconds=start_seconds + 12 * step_seconds)
    return choose_num_steps(pace, minutes=minutes, recipe=TrainingConfig(num_steps=recipe_num_steps, evaluate_every_steps=280))


def record(step: int) -> dict[str, float]:
    return {"step": step, "loss_nats": 1.0, "seconds": step + 0.5}


def test_the_chosen_steps_end_in_time_with_probe_loading_and_evaluations():
    for minutes in (3, 5, 8, 12):
        num_steps = choose(minutes)
        num_evaluations = 2 if num_steps <= 280 else 3
        seconds = 32 + 20 + num_steps + num_evaluations * 20
        # near the whole time, with something kept back
        assert 0.6 * 60 * minutes < seconds < 60 * minutes, (minutes, num_steps)


def test_more_minutes_or_a_faster_machine_give_more_steps_and_never_more_than_the_recipe():
    counts = [choose(minutes) for minutes in (3, 5, 7, 9)]
    assert counts == sorted(set(counts))
    assert choose(4, step_seconds=0.5) > choose(4)
    assert choose(4, start_seconds=40) < choose(4)
    assert choose(60) == 560
    assert choose(60, recipe_num_steps=300) == 300


def test_too_short_a_time_is_refused_with_one_that_is_enough():
    with pytest.raises(InputError, match=r"--minutes (\d+) or more") as caught:
        choose(1, step_seconds=3.0)
    enough = int(str(caught.value).split("--minutes ")[1].split()[0])
    assert choose(enough, step_seconds=3.0) >= 20
    with pytest.raises(InputError):
        choose(enough - 1, step_seconds=3.0)


def test_a_pace_forgets_the_steps_that_warm_up_and_counts_their_time_as_spent_on_steps():
    pace = Pace.of([9.0, 5.0, 1.0, 1.0, 3.0, 1.0], spent_seconds=50.0)
    assert (pace.step_seconds, pace.start_seconds, pace.spent_seconds) == (1.0, 30.0, 50.0)


def test_steps_that_align_the_adaptor_alone_count_as_what_they_take():
    pace = Pace.of([9.0, 2.0], aligning=[5.0, 0.2, 0.2], spent_seconds=40.0)
    assert (pace.step_seconds, pace.alignment_seconds, pace.start_seconds) == (2.0, 0.2, pytest.approx(23.6))
    with_alignment = TrainingConfig(num_steps=200, alignment_steps=100)
    without = TrainingConfig(num_steps=200)
    counts = [choose_num_steps(pace, minutes=8, recipe=recipe) for recipe in (without, with_alignment)]
    assert counts[1] > 1.5 * counts[0]


def test_what_to_expect_depends_on_how_much_of_the_recipe_fits():
    pace = Pace(1.0, 20.0, 32.0)
    said = [describe_choice(num_steps, pace, minutes=5, recipe_num_steps=560) for num_steps in (560, 400, 200)]
    assert "all 560 steps of the recipe" in said[0]
    assert "400 of the recipe's 560 steps" in said[1]
    assert "100 %" not in said[1]
    assert "200 of the recipe's 560 steps" in said[2]
    assert "WER may stay near 100 %" in said[2]


def test_seconds_are_read_from_a_run_and_their_absence_is_an_error(tmp_path):
    with pytest.raises(InputError, match="steps"):
        read_step_seconds(tmp_path)
    (tmp_path / "steps.jsonl").write_text("")
    with pytest.raises(InputError, match="no steps"):
        read_step_seconds(tmp_path)
    (tmp_path / "steps.jsonl").write_text("".join(json.dumps(record(i)) + "\n" for i in range(3)))
    assert read_step_seconds(tmp_path) == ([0.5, 1.5, 2.5], [])
    aligning = json.dumps({**record(7), "objective": "alignment"})
    (tmp_path / "steps.jsonl").write_text(f"{aligning}\n{json.dumps(record(1))}\n")
    assert read_step_seconds(tmp_path) == ([1.5], [7.5])
