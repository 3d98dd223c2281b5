"""Ranks that are killed, stopped, stuck or fail in training: all end within seconds, told of the cause, and a restart goes on."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch.distributed.flight_recorder.components.config_manager import JobConfig
from torch.distributed.flight_recorder.components.loader import read_dir

from tests import tiny
from tests.conftest import clean_environment, free_port
from tests.nursery import Nursery
from tests.patience import patience

# far above a tiny step on a loaded machine, far below a test's patience
STALL_SECONDS = 6.0
HOST = socket.gethostname()
KEYS = ("step", "loss_nats", "grad_norm", "keys_digest", "num_target_tokens", "learning_rates")


@pytest.fixture(scope="module")
def float32(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("deepspeed") / "float32.json"
    path.write_text(json.dumps({"zero_optimization": {"stage": 3, "stage3_param_persistence_threshold": 0}}))
    return str(path)


class Training:
    """A run that can be started again and again."""

    def __init__(self, nursery: Nursery, home: Path, folder: Path, **changes: Any) -> None:
        self.run, self.output, self._nursery = folder / "run", folder / "output.txt", nursery
        self.config = tiny.write_config(folder / "run.yaml", home, self.run, **{"data__test": [], **changes})

    def start(self, *, ranks: int = 2, sabotage: tuple[str, ...] = (), **environment: str) -> list[int]:
        self.output.unlink(missing_ok=True)
        return self._nursery.start(
            "train", self.config, ranks=ranks, output=self.output, sabotage=sabotage, environment=environment
        )

    def wait(self, pids: list[int], timeout_seconds: float = patience(60)) -> list[int | None]:
        codes = self._nursery.wait(pids, timeout_seconds=timeout_seconds)
        for pid, code in zip(pids, codes, strict=True):
            if code is None:
                os.kill(pid, signal.SIGKILL)
        return codes

    def finish(self, *, ranks: int = 2, sabotage: tuple[str, ...] = ()) -> list[int | None]:
        return self.wait(self.start(ranks=ranks, sabotage=sabotage))

    @property
    def said(self) -> str:
        return self.output.read_text(errors="replace")

    @property
    def status(self) -> str:
        return str(json.loads((self.run / "run.json").read_text())["status"])

    @property
    def steps(self) -> list[dict[str, Any]]:
        path = self.run / "steps.jsonl"
        lines = path.read_text().splitlines(keepends=True) if path.exists() else []
        records = [json.loads(line) for line in lines if line.endswith("\n")]
        return [{key: record[key] for key in KEYS} for record in records]

    @property
    def evaluations(self) -> list[dict[str, Any]]:
        records = [json.loads(line) for line in (self.run / "evaluations.jsonl").read_text().splitlines()]
        return [
            {key: value for key, value in record.items() if key not in ("train_seconds", "decode_seconds")} for record in records
        ]

    @property
    def checkpoints(self) -> list[str]:
        return sorted(path.name for path in (self.run / "checkpoints").iterdir())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fault", "rank", "codes", "cause"),
    [
        ("raise", 1, [1, 1], f"rank 1 on {HOST} failed: ValueError: a matrix fell over"),
        ("kill", 1, [1, -9], f"rank 1 on {HOST} failed: it ended without a word"),
        ("kill", 0, [-9, 1], f"rank 0 on {HOST} failed: "),
        (
            "loop",
            1,
            [1, 1],
            f"rank 1 on {HOST} failed: no rank has made progress for 6 s (training.stall_seconds is 6): the others wait for "
            "rank 1",
        ),
        ("stop", 1, [1, None], "its process is stopped (SIGSTOP)"),
        ("stop", 0, [None, 1], f"rank 0 on {HOST} failed: the ranks' common store hasn't answered"),
    ],
)
def test_a_ranks_fault_ends_the_others_with_its_cause(nursery, home, tmp_path, fault, rank, codes, cause):
    training = Training(nursery, home, tmp_path, training__num_steps=1000, training__stall_seconds=STALL_SECONDS)
    pids = training.start(sabotage=("at_step", str(rank), "3", fault))
    deadline = time.monotonic() + patience(40)
    while len(training.steps) < 3:
        assert time.monotonic() < deadline, training.said
        time.sleep(0.05)
    began = time.monotonic()
    survivor = pids[1 - rank]
    assert training.wait([survivor], 40) == [codes[1 - rank]], training.said
    took_seconds = time.monotonic() - began
    # what isn't heard of takes the limit, and then the grace that the work has to heed it
    assert took_seconds < (STALL_SECONDS if fault in ("loop", "stop") else 0) + 15
    assert training.wait(pids, 2 if None in codes else 15) == codes
    assert f"error: rank {rank} on {HOST} failed: " in training.said
    assert training.said.count(f"error: {cause}" if cause.startswith("rank") else cause) == 1
    if fault != "raise":
        assert "what each rank does:\n  rank 0 on " in training.said
    if fault == "loop":
        assert "rank 1, which the others wait for, is here:" in training.said
        assert "in _loop" in training.said
        folder = training.run / "flight_recorder"
        assert f"each rank's last collectives are in {folder}: `python -m pickle {folder}/gloo_rank_*`" in training.said
        details, _ = read_dir(JobConfig().parse_args([str(folder), "-p", "gloo_rank_"]))
        assert sorted(details) == ["gloo_rank_0", "gloo_rank_1"]
        assert all(item["entries"] for item in details.values())
    assert training.status == "failed"


def test_a_resume_that_breaks_ends_as_failed_with_its_reason(nursery, home, tmp_path):
    """It isn't refused, so the earlier start's status doesn't stay: a program that waits for the run would take it as done."""
    training = Training(nursery, home, tmp_path, training__num_steps=2)
    assert training.finish() == [0, 0], training.said
    assert training.status == "finished"
    for rank, fault, cause in ((0, "fill the disk", "[Errno 28] No space left on device"), (1, "raise", "a matrix fell over")):
        assert training.finish(sabotage=("in_resume", str(rank), "0", fault)) == [1, 1], training.said
        record = json.loads((training.run / "run.json").read_text())
        assert record["status"] == "failed"
        assert cause in record["reason"]
    assert training.finish() == [0, 0], training.said
    assert training.status == "finished"


def tensors(run: Path, step: int, name: str) -> dict[str, torch.Tensor]:
    read: dict[str, torch.Tensor] = load_file(run / f"checkpoints/step-{step:06d}/{name}.safetensors")
    return read


def assert_same_tensors(ours: tuple[Path, int], theirs: tuple[Path, int]) -> None:
    for name in ("trained", "optimizer"):
        first, second = tensors(*ours, name), tensors(*theirs, name)
        assert first.keys() == second.keys()
        assert all(torch.equal(first[key], second[key]) for key in first), name


@pytest.mark.slow
def test_a_bad_step_is_skipped_on_all_ranks_and_a_resumed_run_goes_on_as_one_that_was_not_stopped(
    nursery, home, tmp_path, float32
):
    options = {
        "deepspeed": float32,
        "training__num_steps": 26,
        "training__checkpoint_every_steps": 1,
        "training__keep_checkpoints": 100,
        "training__on_bad_loss": "skip",
        "training__explode_factor": 50.0,
    }
    sabotage = ("spoil_loss", "0:nan", "3:inf", "4:nan", "23:1e6")
    (tmp_path / "whole").mkdir()
    whole = Training(nursery, home, tmp_path / "whole", **options)
    assert whole.finish(sabotage=sabotage) == [0, 0], whole.said
    skipped = [json.loads(line) for line in (whole.run / "skipped_steps.jsonl").read_text().splitlines()]
    assert [record["step"] for record in skipped] == [0, 3, 4, 23]
    assert [record["grad_norm"] is None for record in skipped] == [True, True, True, False]
    assert skipped[3]["grad_norm"] > skipped[3]["norm_limit"]
    assert all(record["keys"] for record in skipped)
    assert [record["step"] for record in whole.steps] == [step for step in range(26) if step not in (0, 3, 4, 23)]
    for step in (3, 4, 23):
        assert_same_tensors((whole.run, step), (whole.run, step + 1))
    assert not torch.equal(*(next(iter(tensors(whole.run, step, "trained").values())) for step in (5, 6)))

    (tmp_path / "cut").mkdir()
    cut = Training(nursery, home, tmp_path / "cut", **{**options, "training__num_steps": 4})
    assert cut.finish(sabotage=sabotage) == [0, 0]
    cut = Training(nursery, home, tmp_path / "cut", **options)
    assert cut.finish(sabotage=sabotage) == [0, 0]
    assert cut.steps == whole.steps
    assert (cut.run / "skipped_steps.jsonl").read_text() == (whole.run / "skipped_steps.jsonl").read_text()
    assert_same_tensors((cut.run, 26), (whole.run, 26))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "faults", "cause"),
    [
        ({}, ["2:nan"], "Step 2 has loss nan nats and gradient norm inf; it has changed no weight. Its samples are in "),
        (
            {"training__on_bad_loss": "skip", "training__max_skipped_steps": 2},
            ["1:nan", "3:nan", "4:nan", "5:nan"],
            "Step 5 has loss nan nats and gradient norm inf; it is bad step number 3 in a row, more than ",
        ),
    ],
)
def test_a_bad_step_stops_a_run_by_the_stated_rule_with_its_samples_named(nursery, home, tmp_path, options, faults, cause):
    training = Training(nursery, home, tmp_path, training__num_steps=8, **options)
    assert training.finish(sabotage=("spoil_loss", *faults)) == [1, 1]
    assert cause in training.said
    assert training.said.count("Traceback") == 0
    last = json.loads((training.run / "skipped_steps.jsonl").read_text().splitlines()[-1])
    assert f"the first are {last['keys'][0]}" in training.said
    assert training.status == "failed"


@pytest.mark.slow
@pytest.mark.timeout(patience(600))
def test_a_run_killed_twenty_times_in_steps_and_in_saves_equals_one_that_was_not(nursery, home, tmp_path, float32):
    options = {
        "deepspeed": float32,
        "training__num_steps": 48,
        "training__checkpoint_every_steps": 2,
        # one rank has two micro-batches of a step's three, the other one and an empty one
        "batch__micro_batches_per_step": 3,
        "model__adaptor__dropout": 0.1,
    }
    (tmp_path / "whole").mkdir()
    whole = Training(nursery, home, tmp_path / "whole", **options)
    assert whole.finish() == [0, 0], whole.said
    assert len(whole.steps) == 48
    num_tensors = sum(len(tensors(whole.run, 48, name)) for name in ("trained", "optimizer"))

    (tmp_path / "killed").mkdir()
    killed = Training(nursery, home, tmp_path / "killed", **options)
    rng = random.Random(5)
    num_checkpoints = []
    for number in range(20):
        if number % 2:
            # in the first or the second checkpoint of this start, as it is copied or while the steps go on
            what = rng.choice(["in_copy", "in_save"])
            # each rank's are about half of all
            sabotage = (what, str(rng.randrange(2)), str(rng.randrange(num_tensors)), "kill all")
        else:
            # a rank has two micro-batches a step: between them too
            sabotage = ("in_micro_batch", str(rng.randrange(2)), str(rng.randrange(2, 9)), "kill")
        pids = killed.start(sabotage=sabotage)
        victim = pids if number % 2 else [pids[int(sabotage[1])]]
        assert killed.wait(victim) == [-signal.SIGKILL] * len(victim), killed.said
        with contextlib.suppress(ProcessLookupError):
            os.killpg(pids[0], signal.SIGKILL)  # a launcher would, and what ranks do without one has its own test
        killed.wait(pids)
        kept = [name for name in killed.checkpoints if name.startswith("step-")] if (killed.run / "checkpoints").exists() else []
        num_checkpoints.append(max(kept, default=""))
        assert killed.steps == whole.steps[: len(killed.steps)]
    # it got on between kills, and was not at its end before the last
    assert len(set(num_checkpoints)) > 5
    assert num_checkpoints[-1] < "step-000048"
    assert killed.finish() == [0, 0], killed.said
    assert killed.steps == whole.steps
    assert_same_tensors((killed.run, 48), (whole.run, 48))
    assert killed.checkpoints == ["step-000046", "step-000048"]


@pytest.fixture(scope="module")
def evaluated(nursery: Nursery, home: Path, float32: str, tmp_path_factory: pytest.TempPathFactory) -> Training:
    """A run of six steps that nothing disturbed, evaluated every two."""
    training = Training(nursery, home, tmp_path_factory.mktemp("evaluated"), **evaluating(home, float32))
    assert training.finish() == [0, 0], training.said
    return training


def evaluating(home: Path, float32: str) -> dict[str, Any]:
    return {
        "deepspeed": float32,
        "data__test": [{"shards": str(home / "shards/test/*.tar")}],
        "training__num_steps": 6,
        "training__evaluate_every_steps": 2,
        "training__checkpoint_every_steps": 3,
        "evaluation__batch_size": 1,
    }


@pytest.mark.slow
@pytest.mark.parametrize(
    ("sabotage", "step", "evaluated_steps"),
    [
        # three batches a rank and an evaluation, of which there is one before the first step
        (("in_evaluation", "1", "4", "terminate"), 2, [0]),
        (("in_evaluation", "0", "10", "terminate"), 6, [0, 2, 4]),
        (("in_copy", "0", "5", "terminate"), 2, [0, 2]),
        (("at_step", "1", "2", "terminate"), 3, [0, 2]),
    ],
)
def test_a_stop_in_an_evaluation_a_save_or_a_step_is_obeyed_there_and_loses_nothing(
    nursery, home, tmp_path, float32, evaluated, sabotage, step, evaluated_steps
):
    training = Training(nursery, home, tmp_path, **evaluating(home, float32))
    assert training.finish(sabotage=sabotage) == [0, 0], training.said
    record = json.loads((training.run / "run.json").read_text())
    assert (record["status"], record["step"]) == ("resumable", step)
    assert record["reason"] == f"SIGTERM on rank {sabotage[1]}"
    assert f"resumable at step {step}, stopped by SIGTERM" in training.said
    assert [item["step"] for item in training.evaluations] == evaluated_steps
    assert f"step-{step:06d}" in training.checkpoints
    assert training.finish() == [0, 0], training.said
    assert training.steps == evaluated.steps
    assert training.evaluations == evaluated.evaluations
    assert_same_tensors((training.run, 6), (evaluated.run, 6))


@pytest.mark.slow
def test_a_disk_that_takes_no_more_on_rank_0_ends_all_with_the_remedy_and_hurts_no_checkpoint(
    nursery, home, tmp_path, float32, evaluated
):
    options = {**evaluating(home, float32), "data__test": []}
    training = Training(nursery, home, tmp_path, **{**options, "training__num_steps": 3})
    assert training.finish() == [0, 0]
    training = Training(nursery, home, tmp_path, **options)
    size = (training.run / "checkpoints/step-000003/optimizer.safetensors").stat().st_size
    for sabotage, cause in (
        (("limit_file_size", "0", str(size // 2)), "step-000006 can't be written: [Errno 27] File too large. Older checkpoints"),
        (("in_save", "0", "20", "fill the disk"), "step-000006 can't be written: [Errno 28] No space left on device."),
        (("in_save", "1", "20", "fill the disk"), "step-000006 can't be written: [Errno 28] No space left on device."),
        (("in_log", "0", "1", "fill the disk"), f"{training.run} can't be used on {HOST}: [Errno 28] No space left on device."),
    ):
        began = time.monotonic()
        assert training.finish(sabotage=sabotage) == [1, 1], training.said
        assert time.monotonic() - began < 30
        assert cause in training.said
        assert "start the same command again" in training.said
        assert "Traceback" not in training.said
        assert training.status == "failed"
        assert [name for name in training.checkpoints if name.startswith("step-")] == ["step-000003"]
    assert training.finish() == [0, 0], training.said
    assert training.steps == evaluated.steps
    assert training.checkpoints == ["step-000003", "step-000006"]


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["kill -9 of deepspeed", "STOP"])
def test_under_deepspeed_a_stop_file_and_the_end_of_the_launcher_are_obeyed_and_leave_no_rank(home, tmp_path, float32, fault):
    run, output = tmp_path / "run", tmp_path / "output.txt"
    options = {"deepspeed": float32, "training__num_steps": 100_000, "data__test": []}
    config = tiny.write_config(tmp_path / "run.yaml", home, run, **options)
    repository = Path(__file__).parents[2]
    with output.open("w") as log:
        runner = subprocess.Popen(
            ["deepspeed", "-q", "--num_gpus=2", f"--master_port={free_port()}", "launch/train.sh", str(config)],
            env=clean_environment(OMP_NUM_THREADS="1", DS_ACCELERATOR="cpu"),
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            cwd=repository,
        )
    try:
        wait_until(lambda: (run / "steps.jsonl").exists() and (run / "steps.jsonl").read_text().count("\n") > 2, 120, output)
        if fault == "STOP":
            (run / "STOP").touch()
            assert runner.wait(patience(30)) == 0
            assert not (run / "STOP").exists()
            assert "ERROR" not in output.read_text()
        else:
            runner.kill()
        wait_until(lambda: json.loads((run / "run.json").read_text())["status"] == "resumable", 30, output)
        record = json.loads((run / "run.json").read_text())
        cause = f"the file {run / 'STOP'}" if fault == "STOP" else "the end of its launcher"
        assert record["reason"].startswith(cause)
        assert (run / f"checkpoints/step-{record['step']:06d}").is_dir()
        # all that it started is one session
        wait_until(lambda: not processes_of_session(runner.pid), 30, output)
    finally:
        for pid in processes_of_session(runner.pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        runner.wait(10)


def wait_until(is_so: Callable[[], bool], seconds: float, output: Path) -> None:
    deadline = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < deadline, output.read_text()[-3000:]
        time.sleep(0.2)


def processes_of_session(session: int) -> list[int]:
    """Living processes of a session, which outlives its leader."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            fields = path.read_text(errors="replace").rpartition(")")[2].split()
            if int(fields[3]) == session and fields[0] not in "ZX":
                found.append(int(path.parent.name))
    return found
