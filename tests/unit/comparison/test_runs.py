"""Runs as comparison reads them: what is damaged or torn is refused by name."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from kappaspeech.commands import main
from kappaspeech.comparison.runs import config_differences, find_differences, group_runs, read_run
from kappaspeech.comparison.summary import prove_alike, summarise
from kappaspeech.comparison.tables import make_tables
from kappaspeech.errors import InputError
from kappaspeech.evaluation.evaluate import read_hypotheses
from kappaspeech.evaluation.wer import Hypothesis
from kappaspeech.json_lines import write_lines
from tests.made_runs import make_run


@pytest.fixture
def run(tmp_path):
    return make_run(tmp_path / "run", "a", seed=1, error_rate=0.2, num_clips=2)


def drop_last(path):
    path.write_bytes(path.read_bytes().rstrip(b"\n").rpartition(b"\n")[0] + b"\n")


def tear_last(path):
    path.write_bytes(path.read_bytes()[:-20])


def spoil_first(path):
    path.write_bytes(b"\xff" + path.read_bytes())


@pytest.mark.parametrize("name", ["evaluations.jsonl", "steps.jsonl"])
@pytest.mark.parametrize("damage", [tear_last, spoil_first])
def test_a_damaged_log_is_not_compared(run, name, damage):
    damage(run / name)
    with pytest.raises(InputError, match=rf"{name}, line \d+ can't be read"):
        read_run(run)


def test_a_run_whose_last_evaluation_is_missing_is_not_compared(run):
    record = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps({**record, "step": 60}))
    assert read_run(run).last["step"] == 60
    drop_last(run / "evaluations.jsonl")
    with pytest.raises(InputError, match="finished at step 60, and its last evaluation is of step 50"):
        read_run(run)


def test_evaluations_of_different_steps_are_not_set_side_by_side(run, tmp_path):
    other = make_run(tmp_path / "other", "b", seed=1, error_rate=0.2, num_clips=2)
    drop_last(other / "evaluations.jsonl")
    assert find_differences(read_run(run), read_run(other)) == ["the step of the last evaluation, 60 and 50"]


@pytest.mark.parametrize("content", ['{"schema_version": 1, "status": "finished"}', '{"schema_version": 1}'])
def test_a_run_folder_without_its_fields_is_refused_by_name(run, content):
    (run / "run.json").write_text(content)
    with pytest.raises(InputError, match=r"isn't what a finished training leaves: it lacks 'arm'|doesn't hold the run's status"):
        read_run(run)


def test_a_run_without_a_wer_is_not_compared(run):
    lines = [json.dumps({"step": 60, "wer": {"mean_wer": None}, "text": {}})]
    (run / "evaluations.jsonl").write_text("\n".join(lines) + "\n")
    with pytest.raises(InputError, match="has no WER"):
        read_run(run)


@pytest.mark.parametrize("of_text", [True, False])
def test_a_run_that_measured_more_languages_when_it_was_continued_is_not_compared(run, of_text, tmp_path, capsys):
    """It ended in a KeyError."""
    records = [json.loads(line) for line in (run / "evaluations.jsonl").read_text().splitlines()]
    for record in records[:3]:
        del (record["text"] if of_text else record["wer"]["languages"])["de"]
    write_lines(run / "evaluations.jsonl", records)
    assert main(["compare", str(run), "--output", str(tmp_path / "report")]) == 2
    assert f"no {'text' if of_text else 'speech'} in de at step 0, but did at step 60" in capsys.readouterr().err


def test_each_arm_needs_a_seed_in_common_with_the_reference_that_is_asked_for(tmp_path):
    made = {"both": (1, 2), "first": (1,), "second": (2,)}
    folders = {f"{arm}{seed}": (arm, seed) for arm, seeds in made.items() for seed in seeds}
    runs = [
        read_run(make_run(tmp_path / name, arm, seed=seed, error_rate=0.2, num_clips=2)) for name, (arm, seed) in folders.items()
    ]
    assert [arm.name for arm in group_runs(runs)] == ["both", "first", "second"]
    with pytest.raises(InputError, match=r"'second' \(seed 2\) and 'first' \(seed 1\) have no seed in common"):
        group_runs(runs, reference="first")
    # whichever run is named first
    assert [arm.name for arm in group_runs(runs[::-1], reference="both")] == ["both", "second", "first"]


def test_a_step_that_one_arm_skipped_is_no_other_sample_of_the_others(run, tmp_path):
    other = make_run(tmp_path / "other", "b", seed=1, error_rate=0.2, num_clips=2)
    lines = (other / "steps.jsonl").read_text().splitlines(keepends=True)
    (other / "steps.jsonl").write_text("".join(lines[:30] + lines[31:]))
    with pytest.raises(InputError, match="the number of steps recorded, 60 and 59"):
        group_runs([read_run(run), read_run(other)])
    (other / "skipped_steps.jsonl").write_text('{"step": 30, "keys": []}\n')
    arms = group_runs([read_run(run), read_run(other)])
    (proof,) = prove_alike(arms)
    assert proof["num_steps"] == 59
    assert prove_alike(arms[::-1]) == [proof]
    assert "Bad steps that were skipped, in all seeds: b 1." in str(make_tables(summarise(arms, missing={})))


def test_arms_of_machines_that_compute_otherwise_are_not_compared(run):
    whole = read_run(run)
    here, there = (replace(whole, record={**whole.record, "encoder_dtype": dtype}) for dtype in ("float32", "bfloat16"))
    assert find_differences(here, there) == ["encoder_dtype"]
    # a version before it was recorded
    assert find_differences(here, whole) == []


def at_rate(run, rate, **changes):
    return replace(run, config={**run.config, "optimizer": {**run.config["optimizer"], "llm_learning_rate": rate}}, **changes)


def test_arms_may_differ_in_the_rate_of_the_llm_and_the_report_says_so(tmp_path):
    made = {"a": ["model.layers.0.mlp.up_proj.weight"], "none": []}
    whole, none = (
        read_run(make_run(tmp_path / name, name, seed=1, error_rate=0.2, num_clips=2, selected=selected))
        for name, selected in made.items()
    )
    alike = summarise(group_runs([whole, replace(whole, arm="other")]), missing={})
    assert "LLM's learning rate" not in str(make_tables(alike))
    half = at_rate(whole, 1e-4, arm="half the rate")
    assert find_differences(whole, half) == []
    told = summarise(group_runs([whole, half, none]), missing={})
    (training,) = (table for table in make_tables(told) if table.title == "Training")
    assert training.header[-1] == "LLM's learning rate"
    assert [(row[-1].text, row[-1].value) for row in training.rows] == [("0.0002", 2e-4), ("0.0001", 1e-4), ("–", 0.0)]


def test_the_seeds_of_one_arm_are_of_one_rate_and_held_alike(run):
    whole = read_run(run)
    another_seed = replace(whole, seed=2, config={**whole.config, "seed": 2})
    with pytest.raises(InputError, match=r"both called 'a' and differ in optimizer\.llm_learning_rate\. Set `arm`"):
        group_runs([whole, at_rate(another_seed, 1e-4)])
    with pytest.raises(InputError, match=r"both called 'a' and differ in classp\. Set `arm`"):
        group_runs([whole, replace(another_seed, config={**another_seed.config, "classp": {"threshold": 1e-8}})])
    assert len(group_runs([whole, another_seed])) == 1


HOSTILE = "[/red]$\\frac{$ <script>alert(1)</script>\"' \x1b[31m\u202e _"


def test_an_arms_name_is_text_in_tables_pages_and_pictures(tmp_path, capsys):
    runs = [
        make_run(
            tmp_path / str(number), name, seed=1, error_rate=0.2, num_clips=2, selected=["model.layers.0.mlp.up_proj.weight"]
        )
        for number, name in enumerate((HOSTILE, f"_{HOSTILE}"))
    ]
    assert main(["compare", *map(str, runs), "--output", str(tmp_path / "report")]) == 0
    page = (tmp_path / "report/report.html").read_text()
    printed = capsys.readouterr().out
    assert "[/red]" in printed
    for text in (page, printed, (runs[0] / "run.md").read_text()):
        assert "\x1b" not in text
        assert "\u202e" not in text
    assert "<script>alert" not in page
    assert page.count("&lt;script&gt;alert(1)&lt;/script&gt;") > 4
    # the picture's legend has both
    assert page.count("[/red]$\\frac{$") >= 2


def test_hypotheses_may_hold_any_line_break(tmp_path):
    items = [Hypothesis("k\u2028", "en", "a\u0085b", "c\u2029d\x0ce", 1.0, "end")]
    write_lines(tmp_path / "h.jsonl", [item.to_json() for item in items])
    assert read_hypotheses(tmp_path / "h.jsonl") == items


@pytest.mark.parametrize(
    "line",
    ['{"key": "a"}', '{"key": 1, "language": "en", "reference": "", "hypothesis": ""}', "[]", "\x00", '{"key": "a'],
    ids=repr,
)
def test_what_is_no_hypothesis_is_named_by_its_line(tmp_path, line):
    (tmp_path / "h.jsonl").write_text('{"key": "a", "language": "en", "reference": "", "hypothesis": ""}\n' + line)
    with pytest.raises(InputError, match=r"h.jsonl can't be read as hypotheses: line 2: "):
        read_hypotheses(tmp_path / "h.jsonl")


def test_loggers_and_traces_make_no_other_run():
    alike = {"training": {"num_steps": 9}}
    watched = {"training": {"num_steps": 9, "loggers": ["wandb"], "profile": {"steps": [2, 3], "ranks": "all"}}}
    assert config_differences(alike, watched) == []
    assert config_differences(alike, {"training": {**watched["training"], "num_steps": 8}}) == ["training.num_steps"]
