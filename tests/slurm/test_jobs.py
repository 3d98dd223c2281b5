"""The job scripts of launch/slurm on a real SLURM of two nodes."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path

import pytest
import yaml

from tests import tiny
from tests.ranks.test_training import assert_same_steps, steps

REPOSITORY = Path(__file__).parents[2]
pytestmark = pytest.mark.slow


@pytest.mark.parametrize("script", sorted((REPOSITORY / "launch/slurm").glob("*.sbatch")), ids=lambda path: path.name)
def test_slurm_takes_the_scripts_as_they_are(slurm, script):
    assert re.search(r"Job \d+ to start at", slurm.run("sbatch", "--test-only", script))


def test_the_pipeline_scans_selects_trains_on_two_nodes_and_evaluates(slurm, jobs, home, one_rank, tmp_path):
    config = tiny.write_config(tmp_path / "my run.yaml", home, tmp_path / "run", unfreeze__selection="my selection.json")
    first = slurm.submit(jobs / "pipeline.sbatch", config, cwd=tmp_path)
    (said,) = slurm.finish([first], seconds=60)
    stages = dict(re.findall(r"(\w+): job (\d+)", said))
    assert list(stages) == ["scan", "select", "train", "evaluate"]
    slurm.finish([int(number) for number in stages.values()], seconds=150)
    assert slurm.job(int(stages["scan"]))["NodeList"] == slurm.job(int(stages["train"]))["NodeList"] == "n[1-2]"
    ours, theirs = (
        [entry["name"] for entry in json.loads(path.read_text())["tensors"]]
        for path in (tmp_path / "ranking.json", home / "ranking.json")
    )
    assert ours == theirs
    record = json.loads((tmp_path / "run/run.json").read_text())
    assert (record["status"], record["world_size"]) == ("finished", 2)
    assert_same_steps(tmp_path / "run", one_rank)
    assert list((tmp_path / "run").glob("evaluation*.json"))


def test_a_warned_training_is_requeued_and_goes_on_to_the_same_losses_on_the_node_that_is_left(
    slurm, jobs, home, train, tmp_path
):
    changes = {"training__checkpoint_every_steps": 0, "data__test": [], "data__text": {}}
    run = tmp_path / "run"
    config = tiny.write_config(tmp_path / "run.yaml", home, run, training__num_steps=4000, **changes)
    job = slurm.submit(jobs / "train.sbatch", "--config", config, cwd=tmp_path)
    log = run / "steps.jsonl"
    deadline = time.monotonic() + 90
    while not (log.exists() and log.read_text()):
        assert time.monotonic() < deadline, slurm.output(slurm.job(job))
        time.sleep(0.1)
    slurm.run("scontrol", "update", "NodeName=n2", "State=DRAIN", "Reason=test")
    try:
        # what --signal=B:USR1@… sends ahead of the time limit
        slurm.run("scancel", "--batch", "--signal=USR1", job)
        slurm.wait(job, "PENDING", seconds=60)
        reached = len(steps(run))
        assert 0 < reached < 4000
        assert json.loads((run / "run.json").read_text())["world_size"] == 2
        tiny.write_config(config, home, run, training__num_steps=reached + 3, **changes)
        # two nodes aren't there any more
        slurm.run("scontrol", "update", f"JobId={job}", "NumNodes=1", "NumTasks=1")
        (said,) = slurm.finish([job], seconds=120)
    finally:
        slurm.run("scontrol", "update", "NodeName=n2", "State=RESUME")
    ended = slurm.job(job)
    assert (ended["Restarts"], ended["NodeList"]) == ("1", "n1"), said
    assert json.loads((run / "run.json").read_text())["world_size"] == 1
    assert len(steps(run)) == reached + 3
    assert_same_steps(run, train("uninterrupted", training__num_steps=reached + 3, **changes))


def test_a_cancelled_training_saves_and_is_not_requeued(slurm, jobs, home, tmp_path):
    config = tiny.write_config(tmp_path / "run.yaml", home, tmp_path / "run", training__num_steps=4000, data__test=[])
    job = slurm.submit("--nodes=1", jobs / "train.sbatch", "--config", config, cwd=tmp_path)
    deadline = time.monotonic() + 90
    while not (tmp_path / "run/steps.jsonl").exists():
        assert time.monotonic() < deadline, slurm.output(slurm.job(job))
        time.sleep(0.1)
    slurm.run("scancel", job)
    ended = slurm.wait(job, seconds=60)
    assert (ended["JobState"], ended["Restarts"]) == ("CANCELLED", "0")
    assert json.loads((tmp_path / "run/run.json").read_text())["status"] == "resumable"


def test_the_trials_of_an_experiment_are_an_array_with_a_report_after_it(slurm, jobs, home, tmp_path):
    tiny.write_config(tmp_path / "run.yaml", home, tmp_path / "unused", training__num_steps=2)
    arms = [{"name": "smallest κ", "select": "smallest"}, {"name": "adaptor only", "select": "adaptor"}]
    content = {
        "base": "run.yaml",
        "output": "out",
        "ranking": str(home / "ranking.json"),
        "count": 4,
        "arms": arms,
        "seeds": [17],
    }
    (tmp_path / "experiment.yaml").write_text(yaml.safe_dump(content, allow_unicode=True), encoding="utf-8")
    first = slurm.submit(jobs / "compare.sbatch", "experiment.yaml", cwd=tmp_path)
    (said,) = slurm.finish([first], seconds=60)
    found = re.fullmatch(r"2 trials: job (\d+); the report: job (\d+)\n", said)
    assert found, said
    slurm.finish([int(found[2])], seconds=150)
    records = [json.loads(path.read_text()) for path in sorted((tmp_path / "out/runs").glob("*/run.json"))]
    assert [record["status"] for record in records] == ["finished", "finished"]
    assert (tmp_path / "out/report.html").exists()


def test_a_failing_stage_ends_those_that_wait_for_it(slurm, jobs, home, tmp_path):
    config = tiny.write_config(tmp_path / "run.yaml", home, tmp_path / "run", model__llm=str(tmp_path / "nowhere"))
    (said,) = slurm.finish([slurm.submit(jobs / "pipeline.sbatch", config, cwd=tmp_path)], seconds=60)
    scan, *others = (int(number) for number in re.findall(r"job (\d+)", said))
    ended = slurm.wait(scan, seconds=60)
    assert ended["JobState"] == "FAILED"
    assert "nowhere" in slurm.output(ended)
    assert {slurm.wait(other, seconds=30)["JobState"] for other in others} == {"CANCELLED"}
