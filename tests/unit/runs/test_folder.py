"""The record of a run's folder, and what it hides."""

from __future__ import annotations

import json
import subprocess

import pytest

from kappaspeech.commands import main
from kappaspeech.config.run_config import RunConfig, read_run_config
from kappaspeech.errors import InputError, TrainingError
from kappaspeech.runs.folder import RunFolder
from kappaspeech.runs.readme import describe_outcome
from tests.made_runs import make_run


def test_the_commit_of_a_repository_around_an_installed_package_is_not_taken_for_the_packages(tmp_path, monkeypatch):
    """A virtual environment within a project, whose commit had been recorded as that of this code."""
    module = tmp_path / ".venv/kappaspeech/runs/folder.py"
    module.parent.mkdir(parents=True)
    module.touch()
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b.c"]
    subprocess.run([*git, "init", "--quiet"], check=True)
    subprocess.run([*git, "commit", "--quiet", "--allow-empty", "--message", "another project's"], check=True)
    monkeypatch.setattr("kappaspeech.runs.folder.__file__", str(module))
    run = make_run(tmp_path / "run", "a", seed=1, error_rate=0.2, num_clips=2)
    assert json.loads((run / "run.json").read_text())["git_commit"] is None
    # in its own repository the package is a part of the commit
    subprocess.run([*git, "add", str(module)], check=True)
    subprocess.run([*git, "commit", "--quiet", "--message", "the package"], check=True)
    head = subprocess.run([*git, "rev-parse", "HEAD"], check=True, capture_output=True, text=True).stdout.strip()
    run = make_run(tmp_path / "other", "a", seed=1, error_rate=0.2, num_clips=2)
    assert json.loads((run / "run.json").read_text())["git_commit"] == head


def test_a_runs_guide_tells_of_a_wer_that_is_not_known(tmp_path):
    run = make_run(tmp_path / "run", "a", seed=1, error_rate=0.2, num_clips=2)
    lines = [json.dumps({"step": step, "wer": {"mean_wer": None}, "text": {}}) for step in (0, 60)]
    (run / "evaluations.jsonl").write_text("\n".join(lines) + "\n")
    assert "mean WER unknown at step 0, unknown at step 60" in describe_outcome(run)


def test_a_changed_frozen_tensor_fails_the_run_by_name(tmp_path):
    folder = RunFolder(tmp_path)
    folder.write_frozen({"a": "1", "b": "2"}, {"a": "1", "b": "2"})
    with pytest.raises(TrainingError, match=r"first: b"):
        folder.write_frozen({"a": "1", "b": "2"}, {"a": "1", "b": "3"})
    assert json.loads((tmp_path / "frozen.json").read_text())["changed"] == ["b"]


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
    with pytest.raises(InputError, match=r"run\.json doesn't hold the run's status"):
        RunFolder(tmp_path).read_record()


def test_a_status_is_printed_so_that_a_terminal_does_not_obey_it(tmp_path, capsys):
    (tmp_path / "run.json").write_text('{"schema_version": 1, "status": "\\u001b[2J\\u202e"}')
    assert main(["status", str(tmp_path)]) == 1
    assert capsys.readouterr().out == "\\x1b[2J\\u202e\n"
    # half of a surrogate pair is no text
    (tmp_path / "run.json").write_text('{"schema_version": 1, "status": "\\ud800"}')
    assert main(["status", str(tmp_path)]) == 2
