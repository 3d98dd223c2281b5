"""What a run writes: tensor files, checkpoints, logs, and the schedule of its rates."""

from __future__ import annotations

import itertools
import json
import os
import signal
from dataclasses import replace

import pytest
import torch
from kappaspeech.commands import main
from kappaspeech.config.run_config import RunConfig, read_run_config
from kappaspeech.config.training_config import OptimizerConfig
from kappaspeech.errors import CheckpointError, InputError, TrainingError
from kappaspeech.speech.loading import BadSample
from kappaspeech.tensor_files.safetensors_writer import SafetensorsWriter
from kappaspeech.training.checkpoint import check_fingerprints, list_checkpoints
from kappaspeech.training.engine import average_decay
from kappaspeech.training.guide import describe_outcome
from kappaspeech.training.run_folder import RunFolder
from kappaspeech.training.run_log import RunLog, StepRecord, read_lines
from kappaspeech.training.schedule import rate_factor
from kappaspeech.training.stopping import StopRequest
from safetensors.torch import load_file

from tests.made_runs import make_run


def record(step: int) -> StepRecord:
    return StepRecord(
        step, 1.0, 8.0, 8, {"adaptor": 1e-3}, 0.5, 1.0, 4.0, 4.0, 80.0, 0.3, {"data": 0.5}, 0.0, 0.1, 0.1, {}, {}, 1, "0"
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_streamed_tensor_file_is_a_safetensors_file(tmp_path, dtype):
    tensors = {"b": torch.randn(3, 5), "a": torch.randn(7), "scalar": torch.tensor(2.0)}
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    writer = SafetensorsWriter(tmp_path / "x.safetensors", shapes, dtype=dtype)
    for name, tensor in tensors.items():
        writer.add(name, tensor)
    writer.close()
    read = load_file(tmp_path / "x.safetensors")
    assert all(torch.equal(read[name], tensor.to(dtype)) for name, tensor in tensors.items())
    assert {name: tuple(tensor.shape) for name, tensor in read.items()} == shapes


def test_an_unfinished_checkpoint_is_none(tmp_path):
    for name in ("step-000010", "step-000002", "step-1000000", ".step-000011.tmp", "other"):
        (tmp_path / name).mkdir()
    assert [path.name for path in list_checkpoints(tmp_path)] == ["step-000002", "step-000010", "step-1000000"]
    assert list_checkpoints(tmp_path / "nowhere") == []


def test_what_has_changed_since_a_checkpoint_is_named(tmp_path):
    saved = {"data": "a" * 64, "selection": "b" * 64}
    check_fingerprints(tmp_path, saved, dict(saved))
    with pytest.raises(CheckpointError, match=r"another data \(data was a{12}, is c{12}\)"):
        check_fingerprints(tmp_path, saved, {**saved, "data": "c" * 64})


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


def test_a_runs_guide_tells_of_a_wer_that_is_not_known(tmp_path):
    run = make_run(tmp_path / "run", "a", seed=1, error_rate=0.2, num_clips=2)
    lines = [json.dumps({"step": step, "wer": {"mean_wer": None}, "text": {}}) for step in (0, 60)]
    (run / "evaluations.jsonl").write_text("\n".join(lines) + "\n")
    assert "mean WER unknown at step 0, unknown at step 60" in describe_outcome(run)


def test_an_evaluation_takes_the_place_of_one_of_the_same_step(tmp_path):
    log = RunLog(tmp_path, resume_step=0)
    for wer in (0.5, 0.25):
        log.add_evaluation({"step": 4, "wer": {"mean_wer": wer}, "text": {"en": {"perplexity": 9.0}}})
    log.close()
    assert [line["wer"]["mean_wer"] for line in read_lines(tmp_path / "evaluations.jsonl")] == [0.25]


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


def test_a_changed_frozen_tensor_fails_the_run_by_name(tmp_path):
    folder = RunFolder(tmp_path)
    folder.write_frozen({"a": "1", "b": "2"}, {"a": "1", "b": "2"})
    with pytest.raises(TrainingError, match=r"first: b"):
        folder.write_frozen({"a": "1", "b": "2"}, {"a": "1", "b": "3"})
    assert json.loads((tmp_path / "frozen.json").read_text())["changed"] == ["b"]


def test_rates_warm_up_and_fall_along_a_cosine():
    config = OptimizerConfig(warmup_steps=4, schedule="cosine", final_fraction=0.1)
    factors = [rate_factor(step, num_steps=20, config=config) for step in range(20)]
    assert factors[:4] == [0.25, 0.5, 0.75, 1.0]
    assert factors[4] == 1.0
    assert factors[-1] == pytest.approx(0.1)
    assert all(later <= earlier for earlier, later in itertools.pairwise(factors[4:]))


def test_rates_stay_constant_by_choice():
    config = OptimizerConfig(warmup_steps=0, schedule="constant")
    assert {rate_factor(step, num_steps=9, config=config) for step in range(9)} == {1.0}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT])
def test_a_signal_is_a_wish_to_stop_and_handlers_are_put_back(tmp_path, number):
    before = signal.getsignal(number)
    with StopRequest(tmp_path) as stop:
        assert stop.reason() is None
        os.kill(os.getpid(), number)
        assert stop.reason() == signal.Signals(number).name
    assert signal.getsignal(number) is before


def test_a_stop_file_and_a_budget_are_wishes_too(tmp_path):
    with StopRequest(tmp_path, budget_seconds=1e-9) as stop:
        assert stop.reason() == "the time budget"
    (tmp_path / "STOP").touch()
    with StopRequest(tmp_path) as stop:
        assert str(tmp_path / "STOP") in (stop.reason() or "")


def test_a_moving_average_soon_forgets_where_it_began():
    decays = [average_decay(update, decay=0.999) for update in (1, 10, 100, 10_000)]
    assert decays == pytest.approx([2 / 11, 11 / 20, 101 / 110, 0.999])


def test_a_run_folder_shows_no_secret_of_a_url_and_can_still_be_read(tmp_path):
    secret = "hunter2"
    urls = [f"https://me:{secret}@host/train-{{00..99}}.tar", f"https://host/test.tar?X-Amz-Signature={secret}"]
    data = {"train": [{"shards": urls[0]}], "test": [{"shards": urls[1]}]}
    models = {"llm": "l", "encoder": "e"}
    config = RunConfig.model_validate({"run_dir": str(tmp_path), "model": models, "data": data, "training": {"num_steps": 1}})
    facts = {"world_size": 1, "num_trained_parameters": 1}
    folder = RunFolder(tmp_path)
    folder.begin(config, selection=None, rule="none", facts=facts)
    kept = tmp_path / "secrets.json"
    assert [path.name for path in tmp_path.rglob("*") if path.is_file() and secret in path.read_text()] == [kept.name]
    assert kept.stat().st_mode & 0o777 == 0o600
    assert folder.read_config() == config
    assert read_run_config(tmp_path / "config.json") == config
    # what tells one run from another neither holds a secret nor changes with a signature
    digest = folder.read_record()["config_digest"]
    signed = json.loads(json.dumps(config.model_dump(mode="json")).replace("Signature=hunter2", "Signature=other"))
    folder.begin(RunConfig.model_validate_json(json.dumps(signed)), selection=None, rule="none", facts=facts)
    assert folder.read_record()["config_digest"] == digest
    kept.unlink()
    assert secret not in folder.read_config().data.train[0].shards


@pytest.mark.parametrize("content", ['{"schema_version": 1}', '{"schema_version": 1, "status": null}'])
def test_a_record_without_a_status_is_refused_in_a_sentence(tmp_path, content):
    (tmp_path / "run.json").write_text(content)
    with pytest.raises(InputError, match=r"run\.json doesn't say how the run stands"):
        RunFolder(tmp_path).read_record()


def test_a_status_is_printed_so_that_a_terminal_does_not_obey_it(tmp_path, capsys):
    (tmp_path / "run.json").write_text('{"schema_version": 1, "status": "\\u001b[2J\\u202e"}')
    assert main(["status", str(tmp_path)]) == 1
    assert capsys.readouterr().out == "\\x1b[2J\\u202e\n"
    # half of a surrogate pair is no text
    (tmp_path / "run.json").write_text('{"schema_version": 1, "status": "\\ud800"}')
    assert main(["status", str(tmp_path)]) == 2
