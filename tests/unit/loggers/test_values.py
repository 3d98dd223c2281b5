"""The names under which every logger shows a run's numbers."""

from __future__ import annotations

from dataclasses import asdict, replace

from kappaspeech.loggers.values import distance_values, evaluation_values, step_values
from tests.shown_runs import distance, evaluation, step


def test_a_step_shows_loss_rates_speed_and_memory():
    values = step_values(asdict(step(1)))
    assert {name: values[name] for name in ("train/loss_nats", "train/learning_rate_llm", "train/peak_memory_gb")} == {
        "train/loss_nats": 4.0,
        "train/learning_rate_llm": 2e-4,
        "train/peak_memory_gb": 1.000000001,
    }
    assert {"train/grad_norm", "train/tokens_per_second", "train/audio_seconds_per_second", "train/mfu"} <= values.keys()
    assert values["train/replay_nats"] == 3.5


def test_what_a_step_has_not_is_not_shown():
    values = step_values(asdict(replace(step(1), replay_nats=None, anchor_nats=None, objective="alignment")))
    assert values["train/alignment_nats"] == 4.0
    assert not {"train/loss_nats", "train/replay_nats", "train/anchor_nats"} & values.keys()


def test_a_step_shows_the_hours_of_languages_and_of_data_sets_by_names_that_all_loggers_take():
    sets = {"shards/read/*.tar": 1.5, "shards/read/[*.tar": 0.5, "geübt 1": 2.0, "x" * 300: 3.0}
    values = step_values(asdict(replace(step(1), hours_seen={"en": 3.0, "de": 4.0}, hours_by_dataset=sets)))
    assert {name: value for name, value in values.items() if name.startswith("train/hours")} == {
        "train/hours_en": 3.0,
        "train/hours_de": 4.0,
        "train/hours_of_shards_read_.tar": 1.5,
        "train/hours_of_shards_read_.tar_2": 0.5,
        "train/hours_of_geübt_1": 2.0,
        f"train/hours_of_{'x' * 100}": 3.0,
    }


def test_an_evaluation_shows_what_was_measured_by_language():
    assert evaluation_values(evaluation(1)) == {
        "test/mean_wer": 0.25,
        "test/wer_en": 0.25,
        "text/perplexity_en": 10.0,
        "text/kl_nats_en": 0.125,
        "text/perplexity_de": 8.0,
    }


def test_answers_show_how_many_are_right_and_how_many_have_changed():
    report = {"accuracy": 0.75, "base": {"accuracy": 0.5, "flipped": 0.25}}
    values = evaluation_values({**evaluation(1), "tasks": {"en": report, "de": {"accuracy": 0.5, "base": None}}})
    assert {name: value for name, value in values.items() if name.startswith("tasks/")} == {
        "tasks/accuracy_en": 0.75,
        "tasks/changed_en": 0.25,
        "tasks/accuracy_de": 0.5,
    }
    followed = evaluation_values({**evaluation(1), "instructions": {"de": report}})
    assert {name: value for name, value in followed.items() if name.startswith("instructions/")} == {
        "instructions/accuracy_de": 0.75,
        "instructions/changed_de": 0.25,
    }


def test_a_distance_shows_the_anchors_weight():
    assert distance_values(distance(2)) == {"budget/kl_nats": 0.02, "budget/anchor_weight": 2.0}
    assert distance_values(distance(2) | {"moved_nats": 0.5})["budget/moved_nats"] == 0.5
