"""Records of a run's steps and evaluations, through cuts and damage."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from kappaspeech.evaluation.choice_items import Item
from kappaspeech.evaluation.choices import Picked, measure_choices
from kappaspeech.evaluation.instruction_checks import Check, Instruction
from kappaspeech.evaluation.instructions import measure_instructions
from kappaspeech.runs.records import RunLog, StepRecord, is_evaluation, is_step, is_transcript_step, read_lines
from kappaspeech.speech.loading import BadSample


def record(step: int) -> StepRecord:
    return StepRecord(
        step, 1.0, 8.0, 8, {"adaptor": 1e-3}, 0.5, 1.0, 4.0, 4.0, 80.0, 0.3, {"data": 0.5}, 0.0, 0.1, 0.1, {}, {}, 1, "0"
    )


def test_a_log_goes_on_from_its_checkpoint_without_what_came_after(tmp_path):
    log = RunLog(tmp_path, resume_step=0)
    for step in range(5):
        log.add_step(record(step))
        log.add_bad_samples(step, [BadSample(f"key-{step}", "silent", "x.tar", "every sample is zero")])
    log.add_evaluation({"step": 4, "wer": {"mean_wer": 0.5}, "text": {}})
    log.close()
    with (tmp_path / "steps.jsonl").open("a") as file:
        file.write('{"step": 5, "los')
    log = RunLog(tmp_path, resume_step=3)
    assert log.evaluated_steps() == set()
    log.add_step(record(3))
    log.close()
    assert [line["step"] for line in read_lines(tmp_path / "steps.jsonl")] == [0, 1, 2, 3]
    assert [line["key"] for line in read_lines(tmp_path / "bad_samples.jsonl")] == ["key-0", "key-1", "key-2"]


def test_a_damaged_log_does_not_cost_a_run(tmp_path, caplog):
    log = RunLog(tmp_path, resume_step=0)
    for step in range(3):
        log.add_step(record(step))
        log.add_evaluation({"step": step, "wer": {"mean_wer": 0.5}, "text": {}})
    log.close()
    for name in ("steps.jsonl", "evaluations.jsonl", "bad_samples.jsonl", "skipped_steps.jsonl"):
        with (tmp_path / name).open("ab") as file:
            file.write(b'\xff\n{"foreign": 1}\n')
    log = RunLog(tmp_path, resume_step=3)
    assert log.evaluated_steps() == {0, 1, 2}
    log.close()
    assert len(caplog.records) == 4
    assert "2 line(s) that can't be read" in caplog.text
    assert (tmp_path / "steps.jsonl.damaged").read_bytes() == b'\xff\n{"foreign": 1}\n'


def test_an_evaluation_takes_the_place_of_one_of_the_same_step(tmp_path):
    log = RunLog(tmp_path, resume_step=0)
    for wer in (0.5, 0.25):
        log.add_evaluation({"step": 4, "wer": {"mean_wer": wer}, "text": {"en": {"perplexity": 9.0}}})
    log.close()
    assert [line["wer"]["mean_wer"] for line in read_lines(tmp_path / "evaluations.jsonl")] == [0.25]


def test_a_resumed_run_says_if_another_version_compared_a_language_otherwise(tmp_path, caplog):
    def evaluation(step: int, **normalisers: str) -> dict[str, Any]:
        languages = {language: {"wer": 0.5, "normaliser": name} for language, name in normalisers.items()}
        return {"step": step, "wer": {"mean_wer": 0.5, "languages": languages}, "text": {}}

    log = RunLog(tmp_path, resume_step=0)
    log.add_evaluation({"step": 0, "wer": {"mean_wer": 0.5}, "text": {}})
    log.add_evaluation(evaluation(2, eng="marks-kept", de="whisper-basic"))
    assert not caplog.records
    log.close()
    log = RunLog(tmp_path, resume_step=2)
    for step in (4, 6):
        log.add_evaluation(evaluation(step, eng="whisper-english", de="whisper-basic", fr="whisper-basic"))
    log.close()
    (told,) = [item.getMessage() for item in caplog.records]
    assert told.startswith("WER of eng is by the normaliser whisper-english from step 4 on, and was by marks-kept at step 2")


def test_languages_that_another_version_compared_otherwise_are_told_in_order(tmp_path, caplog):
    languages = ("vi", "de", "eng", "fr", "pl", "cs", "it", "ja")
    log = RunLog(tmp_path, resume_step=0)
    for step, normaliser in enumerate(("marks-kept", "whisper-basic")):
        reports = {language: {"wer": 0.5, "normaliser": normaliser} for language in languages}
        log.add_evaluation({"step": step, "wer": {"mean_wer": 0.5, "languages": reports}, "text": {}})
    log.close()
    assert [item.getMessage().split()[2] for item in caplog.records] == sorted(languages)


def test_replayed_text_has_curves_of_its_own_where_there_is_any(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    log = RunLog(tmp_path, resume_step=0)
    log.add_step(replace(record(0), num_replayed_tokens=9, replay_nats=3.5, anchor_nats=0.25))
    log.add_step(record(1))
    log.close()
    curves = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    for name, value in (("replay_nats", 3.5), ("anchor_nats", 0.25)):
        assert [(item.step, item.value) for item in curves.Scalars(f"train/{name}")] == [(0, value)]


def test_curves_hold_wer_by_language_the_distance_of_text_and_memory(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    log = RunLog(tmp_path, resume_step=0)
    log.add_step(replace(record(0), peak_memory_bytes=3_000_000_000))
    languages = {"en": {"wer": 0.25}, "de": {"wer": None}}
    text = {"en": {"perplexity": 9.0, "kl_nats": 0.5}, "de": {"perplexity": 8.0, "kl_nats": None}}
    log.add_evaluation({"step": 4, "wer": {"mean_wer": 0.25, "languages": languages}, "text": text})
    log.close()
    curves = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    found = {name: curves.Scalars(name)[0].value for name in curves.Tags()["scalars"]}
    assert found["test/wer_en"] == 0.25
    assert found["text/kl_nats_en"] == 0.5
    assert found["train/peak_memory_gb"] == 3.0
    assert not {"test/wer_de", "text/kl_nats_de"} & found.keys()


def test_steps_that_align_the_adaptor_alone_are_told_from_those_on_transcripts(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    log = RunLog(tmp_path, resume_step=0)
    log.add_step(replace(record(0), objective="alignment"))
    log.add_step(record(1))
    log.close()
    written = read_lines(tmp_path / "steps.jsonl")
    # one of a version before this, that had no objectives
    written.append({name: value for name, value in written[1].items() if name != "objective"})
    assert [is_step(step) for step in written] == [True] * 3
    assert [is_transcript_step(step) for step in written] == [False, True, True]
    curves = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [event.step for event in curves.Scalars("train/alignment_nats")] == [0]
    assert [event.step for event in curves.Scalars("train/loss_nats")] == [1]


@pytest.mark.parametrize(
    "change", [{"accuracy": None}, {"base": {"accuracy": 0.5}}, {"base": 1}, {"picked": None}, {"items_digest": 1}]
)
def test_a_record_whose_answers_can_not_be_shown_is_no_evaluation(change):
    items = [Item("q", ("a", "b"), 0)]
    report = measure_choices(items, Picked((0,), (0,)), Picked((1,), (1,)))
    record = {"step": 4, "wer": {"mean_wer": 0.5}, "text": {}}
    assert is_evaluation({**record, "tasks": {"en": report}})
    assert is_evaluation({**record, "tasks": {"en": {**report, "base": None}}})
    assert not is_evaluation({**record, "tasks": {"en": {**report, **change}}})
    assert not is_evaluation({**record, "tasks": [report]})


@pytest.mark.parametrize(
    "change", [{"accuracy": None}, {"loose_accuracy": None}, {"base": {}}, {"followed": 1}, {"items_digest": 1}]
)
def test_a_record_whose_instructions_can_not_be_shown_is_no_evaluation(change):
    report = measure_instructions([Instruction("i", (Check("json", {}),))], ["[]"], ["no"])
    record = {"step": 4, "wer": {"mean_wer": 0.5}, "text": {}}
    assert is_evaluation({**record, "instructions": {"en": report}})
    assert not is_evaluation({**record, "instructions": {"en": {**report, **change}}})
    assert not is_evaluation({**record, "instructions": report})


@pytest.mark.parametrize("sets", [[], {"near": 0.5}, {"near": {}}, {"near": {"mean_wer": "low"}}])
def test_a_record_whose_test_sets_have_no_rates_is_no_evaluation(sets):
    record = {"step": 4, "wer": {"mean_wer": 0.5, "sets": sets}, "text": {}}
    assert not is_evaluation(record)
    assert is_evaluation({**record, "wer": {"mean_wer": 0.5, "sets": {"near": {"mean_wer": None}}}})
