"""Training as a user starts it: on one rank and on two, stopped and continued, with proof of what did not change."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from kappaspeech.loggers.curves import LOGGERS
from tests import tiny
from tests.conftest import clean_environment, free_port
from tests.patience import patience

# bfloat16 activations round sums that ranks take in another order
BF16_LOSS_TOLERANCE = 2e-3


def steps(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "steps.jsonl").read_text().splitlines()]


def evaluations(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "evaluations.jsonl").read_text().splitlines()]


def contents(run: Path) -> dict[str, bytes]:
    return {str(path.relative_to(run)): path.read_bytes() for path in run.rglob("*") if path.is_file()}


def assert_same_steps(ours: Path, theirs: Path) -> None:
    for key in ("step", "keys_digest", "num_target_tokens", "learning_rates"):
        assert [record[key] for record in steps(ours)] == [record[key] for record in steps(theirs)]
    losses = [[record["loss_nats"] for record in steps(run)] for run in (ours, theirs)]
    assert losses[0] == pytest.approx(losses[1], rel=BF16_LOSS_TOLERANCE)


def test_two_ranks_see_the_samples_and_losses_of_one(one_rank, two_ranks):
    assert len(steps(one_rank)) == 4
    assert len({record["keys_digest"] for record in steps(one_rank)}) == 4
    assert_same_steps(one_rank, two_ranks)


def test_exactly_the_selection_and_the_adaptor_are_trained(home, two_ranks):
    selected = {entry["name"] for entry in json.loads((home / "selection.json").read_text())["tensors"]}
    trained = load_file(two_ranks / "checkpoints/step-000004/trained.safetensors")
    of_llm = {name.removeprefix("llm.") for name in trained if name.startswith("llm.")}
    assert of_llm == selected
    base = load_file(home / "llm/model.safetensors")
    for name in of_llm:
        assert not torch.equal(trained[f"llm.{name}"].bfloat16(), base[name]), name
    assert any(name.startswith("adaptor.") for name in trained)
    assert {name.split(".")[0] for name in trained} == {"adaptor", "llm"}


def test_a_trace_and_loggers_change_no_bit_of_what_is_trained(train, two_ranks):
    loggers = [name for name in LOGGERS if find_spec(name)]
    profile = {"steps": [1, 2], "ranks": "all"}
    traced = train("traced", ranks=2, training__profile=profile, training__loggers=loggers)
    trained = [load_file(run / "checkpoints/step-000004/trained.safetensors") for run in (traced, two_ranks)]
    assert all(torch.equal(trained[0][name], tensor) for name, tensor in trained[1].items())
    assert [path.name for path in sorted((traced / "profile").iterdir())] == [
        "steps-1-2.rank-0.json.gz",
        "steps-1-2.rank-1.json.gz",
    ]
    assert all((traced / name).is_dir() for name in loggers)
    assert not (two_ranks / "profile").exists()


def test_every_frozen_tensor_is_bit_equal_after_training(home, two_ranks):
    from kappaspeech.model.tensor_digests import digest_tensor

    proof = json.loads((two_ranks / "frozen.json").read_text())
    selected = {entry["name"] for entry in json.loads((home / "selection.json").read_text())["tensors"]}
    base = load_file(home / "llm/model.safetensors")
    whisper = torch.load(home / "whisper.pt", weights_only=True)["model_state_dict"]
    encoder_dtype = getattr(torch, json.loads((two_ranks / "run.json").read_text())["encoder_dtype"])
    expected = {f"llm.{name}": digest_tensor(tensor) for name, tensor in base.items() if name not in selected}
    expected |= {
        # layer norms stay in float32
        f"whisper.{name.removeprefix('encoder.')}": digest_tensor(tensor if "ln" in name else tensor.to(encoder_dtype))
        for name, tensor in whisper.items()
        if name.startswith("encoder.")
    }
    assert proof["after"] == expected
    assert proof["changed"] == []


def test_evaluation_is_the_same_on_one_rank_and_two(one_rank, run_command, tmp_path):
    for ranks in (1, 2):
        done = run_command("evaluate", one_rank, "--output", tmp_path / f"{ranks}.json", ranks=ranks)
        assert done.returncode == 0, done.stderr[-3000:]
    alone, shared = (json.loads((tmp_path / f"{ranks}.json").read_text()) for ranks in (1, 2))
    assert alone["wer"] == shared["wer"]
    assert (tmp_path / "1.hypotheses.jsonl").read_bytes() == (tmp_path / "2.hypotheses.jsonl").read_bytes()
    # ZeRO-3 replaces linear layers in the process that trains, so transcripts there may differ in a rounding; sums hardly do
    last = evaluations(one_rank)[-1]
    assert (alone["step"], alone["num_utterances"]) == (last["step"], last["num_utterances"]) == (4, 6)
    for record in (alone, shared):
        assert record["text"]["en"]["nats_sum"] == pytest.approx(last["text"]["en"]["nats_sum"], rel=1e-3)


def test_an_evaluation_starts_its_ranks_itself_and_records_what_one_rank_does(one_rank, run_command, tmp_path):
    for name, words in (("alone", []), ("shared", ["--nproc", 2])):
        done = run_command("evaluate", one_rank, "--no-page", "--output", tmp_path / f"{name}.json", *words)
        assert done.returncode == 0, done.stderr[-3000:]
        assert done.stdout.count(f"{name}.hypotheses.jsonl") == 1
    alone, shared = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("alone", "shared"))
    for record in (alone, shared):
        del record["decode_seconds"], record["real_time_factor"]
        # two ranks' sums have another rounding
        record["text"] = {key: pytest.approx(value, rel=1e-6) for key, value in record.pop("text")["en"].items()}
    assert {**shared, "text": {}} == {**alone, "text": {}}
    assert (tmp_path / "alone.hypotheses.jsonl").read_bytes() == (tmp_path / "shared.hypotheses.jsonl").read_bytes()


def test_a_run_continues_on_another_number_of_ranks_as_if_it_had_never_stopped(train, one_rank):
    run = train("continued", ranks=2, training__num_steps=2)
    assert len(steps(run)) == 2
    assert train("continued", ranks=1) == run
    assert_same_steps(run, one_rank)
    assert [record["step"] for record in evaluations(run)] == [0, 2, 4]


def test_a_finished_run_is_left_as_it_is(train, one_rank):
    before = {path: path.stat().st_mtime_ns for path in (one_rank / "checkpoints").rglob("*")}
    evaluated = evaluations(one_rank)
    assert train("one") == one_rank
    assert {path: path.stat().st_mtime_ns for path in (one_rank / "checkpoints").rglob("*")} == before
    assert evaluations(one_rank) == evaluated


def test_resuming_with_another_selection_is_refused_by_name_and_leaves_the_run_as_it_was(home, one_rank, run_command, tmp_path):
    copy = shutil.copytree(one_rank, tmp_path / "copy")
    before = contents(copy)
    selection = tmp_path / "selection.json"
    assert run_command("select", home / "ranking.json", "--count", 3, "--output", selection).returncode == 0
    config = tiny.write_config(tmp_path / "copy.yaml", home, copy, unfreeze__selection=str(selection))
    done = run_command("train", config)
    assert done.returncode == 2, done.stderr[-2000:]
    assert "trained with another" in done.stderr
    assert "selection" in done.stderr
    assert contents(copy) == before


@pytest.mark.slow
def test_sigterm_saves_a_checkpoint_that_the_same_command_continues(home, one_rank, tmp_path):
    config = tiny.write_config(tmp_path / "run.yaml", home, tmp_path / "run", training__num_steps=4000, data__test=[])
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", f"--master_port={free_port()}"]
    process = subprocess.Popen(
        [*launcher, "-m", "kappaspeech", "train", str(config)],
        env=clean_environment(OMP_NUM_THREADS="1"),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        deadline = time.monotonic() + patience(60)
        log = tmp_path / "run/steps.jsonl"
        while not (log.exists() and len(log.read_text().splitlines()) >= 5):
            assert time.monotonic() < deadline
            assert process.poll() is None, process.stdout and process.stdout.read()
            time.sleep(0.2)
        # torchrun passes it on to every rank
        os.kill(process.pid, signal.SIGTERM)
        process.communicate(timeout=patience(60))
    finally:
        process.kill()
    record = json.loads((tmp_path / "run/run.json").read_text())
    assert record["status"] == "resumable"
    checkpoint = max((tmp_path / "run/checkpoints").glob("step-*"))
    assert json.loads((checkpoint / "state.json").read_text())["step"] == len(steps(tmp_path / "run"))
    assert [r["keys_digest"] for r in steps(tmp_path / "run")[:4]] == [r["keys_digest"] for r in steps(one_rank)]


def test_a_step_says_where_its_time_went(two_ranks):
    for record in steps(two_ranks):
        assert sum(record["phase_seconds"].values()) == pytest.approx(record["seconds"])
        assert {"data", "encoder", "forward_backward", "optimizer", "exchange"} <= set(record["phase_seconds"])
        assert record["phase_seconds"]["forward_backward"] > 0


def test_a_step_says_how_fast_it_was(two_ranks):
    rates = json.loads((two_ranks / "run.json").read_text())["matmul_flops_per_second"]
    assert len(rates) == 2
    assert min(rates) > 1e8
    for record in steps(two_ranks):
        assert record["audio_seconds_per_second"] == pytest.approx(record["audio_seconds"] / record["seconds"])
        assert record["tokens_per_second"] * record["seconds"] > record["num_target_tokens"]
        assert 0 < record["mfu"] < 1
