"""`kappaspeech compare EXPERIMENT.yaml`: arms trained alike, resumed, and reported on when one of them fails."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from kappaspeech.commands import main
from tests import tiny
from tests.conftest import clean_environment
from tests.patience import patience

ARMS = [
    {"name": "smallest κ", "select": "smallest"},
    {"name": "largest κ", "select": "largest"},
    {"name": "adaptor only", "select": "adaptor"},
]


def write_experiment(folder: Path, home: Path, *, run: dict | None = None, **changes) -> Path:
    tiny.write_config(folder / "run.yaml", home, folder / "unused", training__evaluate_every_steps=2, **(run or {}))
    content = {
        "base": "run.yaml",
        "output": str(folder / "out"),
        "ranking": str(home / "ranking.json"),
        "count": 4,
        "arms": ARMS,
        "seeds": [17],
        **changes,
    }
    (folder / "experiment.yaml").write_text(yaml.safe_dump(content, allow_unicode=True), encoding="utf-8")
    return folder / "experiment.yaml"


def runs(folder: Path) -> dict[str, dict]:
    return {path.parent.name: json.loads(path.read_text()) for path in sorted(folder.glob("out/runs/*/run.json"))}


@pytest.fixture(scope="module")
def experiment(home, run_command, tmp_path_factory):
    """Three arms, trained two at a time."""
    path = write_experiment(tmp_path_factory.mktemp("experiment"), home)
    done = run_command("compare", path, "--jobs", 2, timeout=patience(200))
    assert done.returncode == 0, done.stdout + done.stderr
    return path


def test_every_arm_is_trained_with_its_own_selection(experiment, home):
    trained = runs(experiment.parent)
    assert set(trained) == {"smallest-kappa-seed17", "largest-kappa-seed17", "adaptor-only-seed17"}
    assert {record["status"] for record in trained.values()} == {"finished"}
    assert trained["adaptor-only-seed17"]["num_llm_trained_parameters"] == 0
    ranked = [entry["name"] for entry in json.loads((home / "ranking.json").read_text())["tensors"]]
    selected = {
        name: [t["name"] for t in json.loads((experiment.parent / f"out/runs/{name}/selection.json").read_text())["tensors"]]
        for name in ("smallest-kappa-seed17", "largest-kappa-seed17")
    }
    assert selected == {"smallest-kappa-seed17": ranked[:4], "largest-kappa-seed17": ranked[:-5:-1]}


def test_arms_start_from_the_same_weights_and_see_the_same_samples(experiment):
    trained = runs(experiment.parent)
    assert len({record["initial_weights_digest"] for record in trained.values()}) == 1
    seen = [
        [(r["keys_digest"], r["num_target_tokens"]) for r in map(json.loads, path.read_text().splitlines())]
        for path in experiment.parent.glob("out/runs/*/steps.jsonl")
    ]
    assert len(seen) == 3
    assert seen[0] == seen[1] == seen[2]


def test_finished_arms_are_left_alone_and_the_list_says_so(experiment, capsys):
    before = {path: path.stat().st_mtime_ns for path in experiment.parent.glob("out/runs/*/*") if path.is_file()}
    assert main(["compare", str(experiment)]) == 0
    assert capsys.readouterr().out.count("finished before") == 3
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert main(["compare", str(experiment), "--list"]) == 0
    listed = capsys.readouterr().out.splitlines()
    assert [line.split("\t")[:4] for line in listed] == [
        [str(i), arm["name"], "seed 17", "finished"] for i, arm in enumerate(ARMS)
    ]


def test_an_experiment_that_has_changed_is_not_mixed_with_the_old_one(experiment, home, tmp_path, capsys):
    shutil.copytree(experiment.parent, tmp_path, dirs_exist_ok=True)
    path = write_experiment(tmp_path, home, run={"optimizer__llm_learning_rate": 0.5}, count=3)
    for words in ([], ["--arm", "1"], ["--report-only"]):
        assert main(["compare", str(path), *words]) == 2
        complaint = capsys.readouterr().err
        for said in ("optimizer.llm_learning_rate", "the selected tensors", "another `output`"):
            assert said in complaint


def test_a_failed_arm_is_named_and_the_others_are_kept(experiment, home, tmp_path, capfd):
    shutil.copytree(experiment.parent, tmp_path, dirs_exist_ok=True)
    path = write_experiment(tmp_path, home, arms=[*ARMS, {"name": "broken", "select": "random"}])
    # it fails as it starts: what lies where its checkpoints go holds nothing
    (tmp_path / "out/runs/broken-seed17/checkpoints/step-000002").mkdir(parents=True)
    assert main(["compare", str(path)]) == 1
    assert "missing: broken, seed 17" in capfd.readouterr().out
    report = json.loads((tmp_path / "out/report.json").read_text())
    assert {arm["arm"] for arm in report["arms"]} == {arm["name"] for arm in ARMS}
    assert list(report["missing"]) == ["broken, seed 17"]
    assert "state.json" in report["missing"]["broken, seed 17"]


@pytest.mark.slow
def test_an_interrupted_arm_goes_on_and_is_trained_by_one_process_alone(home, tmp_path, run_command, capsys):
    path = write_experiment(tmp_path, home, arms=ARMS[:1], run={"training__num_steps": 30})
    command = [sys.executable, "-m", "kappaspeech", "compare", str(path), "--arm", "0"]
    first = subprocess.Popen(command, env=clean_environment(OMP_NUM_THREADS="1"), stdout=subprocess.PIPE, text=True)
    steps = tmp_path / "out/runs/smallest-kappa-seed17/steps.jsonl"
    try:
        deadline = time.monotonic() + patience(60)
        while not (steps.exists() and steps.read_text().count("\n") >= 2):
            assert time.monotonic() < deadline
            assert first.poll() is None, first.stdout.read()
            time.sleep(0.1)
        assert main(["compare", str(path), "--arm", "0"]) == 1
        assert "by another process" in capsys.readouterr().out
        first.send_signal(signal.SIGUSR1)
        assert first.wait(timeout=patience(60)) == 75
    finally:
        first.kill()
        first.stdout.close()
    record = runs(tmp_path)["smallest-kappa-seed17"]
    assert record["status"] == "resumable"
    assert main(["compare", str(path), "--report-only"]) == 2
    done_before = steps.read_text().splitlines()
    done = run_command("compare", path, "--arm", 0, timeout=patience(200))
    assert done.returncode == 0, done.stdout + done.stderr
    assert steps.read_text().splitlines()[: len(done_before)] == done_before
    assert runs(tmp_path)["smallest-kappa-seed17"]["status"] == "finished"


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"arms": [{"name": "a", "select": "smalest"}]}, "arms.0.select"),
        ({"arms": [{"name": "Å", "select": "adaptor"}]}, "no letter or digit"),
        ({"arms": [*ARMS, {"name": "Largest-K", "select": "largest"}, {"name": "LARGEST K", "select": "random"}]}, "largest-k"),
        ({"arms": [{"name": "a", "select": "largest", "seed": 3}]}, "arms.0.seed"),
        ({"arms": [{"name": "a", "select": "all", "lora": {"rank": 4}}]}, "arms.0.lora"),
        ({"arms": [{"name": "a", "select": "lora", "lora": {"rank": 4}}], "equal": "parameters"}, "Remove them"),
        ({"count": None}, "count: missing"),
        ({"seeds": [3, 3]}, "twice"),
        ({"sedes": [3]}, "did you mean 'seeds'"),
        ({"base": "nowhere.yaml"}, "nowhere.yaml"),
        ({"base": "run.yaml", "arms": []}, "arms"),
    ],
)
def test_an_experiment_that_makes_no_sense_is_refused(home, tmp_path, capsys, changes, complaint):
    path = write_experiment(tmp_path, home, **changes)
    assert main(["compare", str(path)]) == 2
    assert complaint in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
