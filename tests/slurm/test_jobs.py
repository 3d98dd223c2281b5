"""The job scripts of launch/slurm on a real SLURM of two nodes."""

from __future__ import annotations

import json
import re
import shlex
import sys
import time
from pathlib import Path

import pytest
import yaml

from tests import tiny
from tests.patience import patience
from tests.ranks.test_training import assert_same_steps, steps
from tests.slurm.cluster import Slurm

REPOSITORY = Path(__file__).parents[2]
pytestmark = pytest.mark.slow


def await_file(slurm: Slurm, job: int, path: Path) -> None:
    """Return once the running job has written to `path`."""
    slurm.wait(job, "RUNNING", seconds=30)
    deadline = time.monotonic() + patience(90)
    while not (path.exists() and path.read_text()):
        record = slurm.job(job)
        assert (record["JobState"], time.monotonic() < deadline) == ("RUNNING", True), slurm.output(record)
        time.sleep(0.1)


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
    await_file(slurm, job, run / "steps.jsonl")
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
    await_file(slurm, job, tmp_path / "run/steps.jsonl")
    slurm.run("scancel", job)
    ended = slurm.wait(job, seconds=60)
    assert (ended["JobState"], ended["Restarts"]) == ("CANCELLED", "0")
    assert json.loads((tmp_path / "run/run.json").read_text())["status"] == "resumable"


def write_experiment(folder: Path, home: Path, *, arms: list[dict[str, str]], **changes: object) -> None:
    tiny.write_config(folder / "run.yaml", home, folder / "unused", **changes)
    content = {
        "base": "run.yaml",
        "output": "out",
        "ranking": str(home / "ranking.json"),
        "count": 4,
        "arms": arms,
        "seeds": [17],
    }
    (folder / "experiment.yaml").write_text(yaml.safe_dump(content, allow_unicode=True), encoding="utf-8")


def test_a_warned_trial_saves_and_is_requeued(slurm, jobs, home, tmp_path):
    write_experiment(tmp_path, home, arms=[{"name": "a", "select": "adaptor"}], training__num_steps=4000)
    job = slurm.submit("--array=0", jobs / "compare.sbatch", "experiment.yaml", cwd=tmp_path)
    run = tmp_path / "out/runs/a-seed17"
    await_file(slurm, job, run / "steps.jsonl")
    slurm.run("scancel", "--batch", "--signal=USR1", job)
    assert slurm.wait(job, "PENDING", seconds=60)["Restarts"] == "1"
    slurm.run("scancel", job)
    assert json.loads((run / "run.json").read_text())["status"] == "resumable"


def test_the_trials_of_an_experiment_are_an_array_with_a_report_after_it(slurm, jobs, home, tmp_path):
    arms = [{"name": "smallest κ", "select": "smallest"}, {"name": "adaptor only", "select": "adaptor"}]
    write_experiment(tmp_path, home, arms=arms, training__num_steps=2)
    first = slurm.submit(jobs / "compare.sbatch", "experiment.yaml", cwd=tmp_path)
    (said,) = slurm.finish([first], seconds=60)
    found = re.fullmatch(r"2 trials: job (\d+); the report: job (\d+)\n", said)
    assert found, said
    slurm.finish([int(found[2])], seconds=150)
    records = [json.loads(path.read_text()) for path in sorted((tmp_path / "out/runs").glob("*/run.json"))]
    assert [record["status"] for record in records] == ["finished", "finished"]
    assert (tmp_path / "out/report.html").exists()


def test_tasks_whose_mpi_sees_one_process_are_refused(slurm, home, tmp_path):
    """Without --mpi=pmix each task would scan the whole model, and all would write the same file."""
    words = [sys.executable, "-m", "kappaspeech", "scan", home / "llm", "--no-journal", "--backend=mpi", "--output", "r.json"]
    script = tmp_path / "mpi.sbatch"
    script.write_text(
        f"#!/bin/bash\nexport PYTHONPATH={shlex.quote(str(REPOSITORY / 'pipeline'))}\nsrun {shlex.join(map(str, words))}\n"
    )
    ended = slurm.wait(slurm.submit("--nodes=2", script, cwd=tmp_path), seconds=60)
    assert (ended["JobState"], ended["ExitCode"]) == ("FAILED", "2:0")
    assert "started 2 processes (slurm), but MPI sees 1. Under srun give --mpi=pmix" in slurm.output(ended)
    assert not (tmp_path / "r.json").exists()


def test_a_scan_is_requeued_ahead_of_the_time_limit_and_the_container_is_put_before_each_command(slurm, jobs, home, tmp_path):
    """A script in Apptainer's place sees the words it would get, and never ends the first time."""
    (tmp_path / "bin").mkdir()
    apptainer = tmp_path / "bin/apptainer"
    apptainer.write_text(f"""#!/bin/bash
set -e
echo "$@" >> {shlex.quote(str(tmp_path / "seen"))}
[ "$1 $2 $3" = "exec --nv my image.sif" ]
[ "${{SLURM_RESTART_COUNT:-0}}" -gt 0 ] || exec sleep 100
exec "${{@:4}}"
""")
    apptainer.chmod(0o755)
    script = jobs / "kappa_scan in a container.sbatch"
    text = (jobs / "kappa_scan.sbatch").read_text(encoding="utf-8")
    text = re.sub("(?m)^CONTAINER=.*$", "CONTAINER='my image.sif'", text)
    text = re.sub("(?m)^# module load.*$", f"PATH={shlex.quote(str(tmp_path / 'bin'))}:$PATH", text)
    script.write_text(text, encoding="utf-8")
    job = slurm.submit("--nodes=1", script, home / "llm", "--output", "ranking.json", cwd=tmp_path)
    await_file(slurm, job, tmp_path / "seen")
    slurm.run("scancel", "--batch", "--signal=USR1", job)
    slurm.finish([job], seconds=60)
    assert slurm.job(job)["Restarts"] == "1"
    assert json.loads((tmp_path / "ranking.json").read_text())["tensors"]


def test_a_failing_stage_ends_those_that_wait_for_it(slurm, jobs, home, tmp_path):
    config = tiny.write_config(tmp_path / "run.yaml", home, tmp_path / "run", model__llm=str(tmp_path / "nowhere"))
    (said,) = slurm.finish([slurm.submit(jobs / "pipeline.sbatch", config, cwd=tmp_path)], seconds=60)
    scan, *others = (int(number) for number in re.findall(r"job (\d+)", said))
    ended = slurm.wait(scan, seconds=60)
    assert ended["JobState"] == "FAILED"
    assert "nowhere" in slurm.output(ended)
    assert {slurm.wait(other, seconds=30)["JobState"] for other in others} == {"CANCELLED"}
