"""Answers to questions of several arms, side by side."""

from __future__ import annotations

import json

import pytest

from kappaspeech.comparison.runs import group_runs, read_run
from kappaspeech.comparison.summary import summarise
from kappaspeech.comparison.tables import make_tables
from kappaspeech.comparison.task_scores import check_same_items, summarise_tasks
from kappaspeech.errors import InputError
from tests.made_runs import make_run

NUM_QUESTIONS = 40


def make_arms(folder, **rates):
    """An arm of two seeds for each rate of forgotten answers."""
    runs = [
        make_run(folder / f"{arm}-{seed}", arm, seed=seed, error_rate=0.2, num_questions=NUM_QUESTIONS, lost=lost)
        for arm, lost in rates.items()
        for seed in (1, 2)
    ]
    return group_runs([read_run(run) for run in runs])


def test_accuracy_before_and_after_and_the_paired_difference_are_told(tmp_path):
    first, second = make_arms(tmp_path, a=0.0, b=0.5)
    of_first = summarise_tasks(first, first)["en"]
    assert (of_first["num_items"], of_first["chance"], of_first["difference"]) == (NUM_QUESTIONS, 0.25, None)
    assert of_first["accuracy"]["mean"] == of_first["accuracy_before"]["mean"] == 0.75
    assert of_first["flipped"]["mean"] == 0
    of_second = summarise_tasks(second, first)["en"]
    # half of the answers, from the first on, are others; of these, three in four were right
    assert of_second["accuracy"]["by_seed"] == [0.375, 0.375]
    assert of_second["flipped"]["mean"] == 0.5
    gap = of_second["difference"]
    assert gap["mean"] == -0.375
    assert gap["interval"][0] < -0.375 < gap["interval"][1] < 0
    assert gap["p_value"] < 0.001


def test_the_table_has_a_row_an_arm_and_is_left_out_where_nothing_was_asked(tmp_path):
    arms = make_arms(tmp_path, a=0.0, b=0.5)
    (table,) = [item for item in make_tables(summarise(arms, missing={})) if item.title == "Tasks"]
    assert table.header == ("arm", "right en (95 %)", "changed en", "minus a, points (95 %)", "p")
    assert [cell.text for cell in table.rows[0]][2:] == ["0.0 ± 0.0 %", "reference", "–"]
    assert table.rows[1][1].text.startswith("75 → 37.5 ± 0.0 % (")
    assert [cell.value for cell in table.rows[1]][1:4] == [0.375, 0.5, -0.375]
    assert "Guessing: en 25 %." in table.note
    silent = group_runs([read_run(make_run(tmp_path / "silent", "c", seed=1, error_rate=0.2))])
    assert summarise_tasks(silent[0], silent[0]) == {}
    assert "Tasks" not in {item.title for item in make_tables(summarise(silent, missing={}))}


def test_arms_that_were_asked_different_questions_are_not_compared(tmp_path):
    arms = make_arms(tmp_path, a=0.0, b=0.5)
    check_same_items(arms)
    path = tmp_path / "b-2/evaluations.jsonl"
    records = [json.loads(line) for line in path.read_text().splitlines()]
    records[-1]["tasks"]["en"]["items_digest"] = "0" * 64
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    changed = group_runs([read_run(tmp_path / name) for name in ("a-1", "b-2", "a-2")])
    with pytest.raises(InputError, match=r"b-2 were asked different questions in en.*Train again with one file"):
        check_same_items(changed)


def test_instructions_have_a_table_of_their_own_with_the_loose_share_and_no_guessing(tmp_path):
    runs = [
        make_run(tmp_path / f"{arm}-{seed}", arm, seed=seed, error_rate=0.2, num_instructions=NUM_QUESTIONS, lost=lost)
        for arm, lost in {"a": 0.0, "b": 0.5}.items()
        for seed in (1, 2)
    ]
    arms = group_runs([read_run(run) for run in runs])
    summary = summarise(arms, missing={})
    report = summary["arms"][1]["instructions"]["en"]
    assert (report["num_items"], report["accuracy"]["mean"], report["loose"]["mean"]) == (NUM_QUESTIONS, 0.5, 0.75)
    assert report["difference"]["mean"] == -0.5
    assert report["difference"]["p_value"] < 0.001
    assert [run["evaluations"][-1]["instructions"] for run in summary["arms"][1]["runs"]] == [{"en": 0.5}] * 2
    (table,) = [item for item in make_tables(summary) if item.title == "Instructions"]
    assert table.header == ("arm", "followed en (95 %)", "loosely en", "changed en", "minus a, points (95 %)", "p")
    assert table.rows[1][1].text.startswith("100 → 50.0 ± 0.0 % (")
    assert [cell.value for cell in table.rows[1]][1:5] == [0.5, 0.75, 0.5, -0.5]
    assert "Tasks" not in {item.title for item in make_tables(summary)}
    path = tmp_path / "b-2/evaluations.jsonl"
    path.write_text(
        path.read_text().replace(json.loads(path.read_text().splitlines()[0])["instructions"]["en"]["items_digest"], "0")
    )
    with pytest.raises(InputError, match=r"b-2 were given different instructions in en"):
        check_same_items(group_runs([read_run(run) for run in runs]))
