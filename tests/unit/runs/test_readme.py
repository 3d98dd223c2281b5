"""The text of run.md on a run's folder."""

from __future__ import annotations

import pytest

from kappaspeech.artefacts import write_text
from kappaspeech.launching.command_lines import MARK_VARIABLE
from kappaspeech.launching.reports import write_report
from kappaspeech.ranks import flight_recorder
from kappaspeech.redaction import SECRETS_FILE
from kappaspeech.runs import contents
from kappaspeech.runs.folder import _write_secrets
from kappaspeech.runs.readme import describe_outcome, write_readme
from kappaspeech.runs.records import RunLog
from kappaspeech.runs.shown_run import _keep_id
from kappaspeech.speech.loading import BadSample
from tests.made_runs import make_run


@pytest.fixture
def whole_run(tmp_path, monkeypatch):
    """A run in which everything has happened that leaves a file."""
    run = make_run(tmp_path / "run", "a", seed=1, error_rate=0.2, num_clips=2, selected=["model.layers.0.mlp.up_proj.weight"])
    (run / "checkpoints/step-000060").mkdir(parents=True)
    _write_secrets(run / SECRETS_FILE, {"token": "s"})
    with (run / contents.STEPS_FILE).open("ab") as file:
        file.write(b"\xff\n")
    log = RunLog(run, resume_step=60)
    log.add_bad_samples(60, [BadSample("key", "silent", "x.tar", "every sample is zero")])
    log.add_skipped_step({"step": 60, "keys": ["key"]})
    log.add_distance({"step": 60, "kl_nats": 0.11, "budget_nats": 0.1, "anchor_weight": 2.0, "languages": {"de": 0.11}})
    log.close()
    _keep_id(run / contents.LOGGERS_FILE)
    flight_recorder.dump(run / contents.COLLECTIVES_FOLDER, 0)
    for name in ("wandb", "trackio", "mlflow", contents.PROFILE_FOLDER):
        (run / name).mkdir()
    monkeypatch.setenv(MARK_VARIABLE, "mark")
    write_report(run, ValueError("a matrix fell over"))
    for name in ("evaluation.json", "evaluation.hypotheses.jsonl", "evaluation.html"):
        write_text(run / name, "")
    return run


def test_every_file_that_runs_make_is_explained(whole_run):
    readme = write_readme(whole_run)
    there = [path for path in whole_run.iterdir() if path.name != contents.README_FILE]
    for path in there:
        names = [name for name, _ in contents.CONTENTS if path.match(name)]
        assert names, f"{path.name} is explained nowhere"
        assert f"- `{names[0]}`: " in readme
    # the run has all that can be there
    known = {name for name, _ in contents.CONTENTS}
    assert known == {name for name in known if any(path.match(name) for path in there)}


def test_answers_to_questions_are_told_beside_the_bases(tmp_path):
    run = make_run(tmp_path / "run", "a", seed=1, error_rate=0.2, num_clips=2, num_questions=8, lost=0.5)
    assert "of questions in en 37.5% answered right, by the base 75.0%" in write_readme(run)
    run = make_run(tmp_path / "other", "a", seed=1, error_rate=0.2, num_clips=2, num_instructions=8, lost=0.5)
    assert "of instructions in en 50.0% followed, by the base 100.0%" in write_readme(run)


def test_a_run_whose_llm_was_drawn_back_tells_how_often(tmp_path):
    run = make_run(tmp_path / "run", "a", seed=1, error_rate=0.2, num_clips=2)
    log = RunLog(run, resume_step=60)
    record = {"budget_nats": 0.1, "anchor_weight": 2.0, "languages": {"de": 0.1}}
    for step, moved_nats in ((20, 0.08), (40, 0.14), (60, 0.12)):
        log.add_distance({"step": step, "kl_nats": min(0.1, moved_nats), "moved_nats": moved_nats, **record})
    log.close()
    told = "\n".join(describe_outcome(run))
    assert "0.1 nats a token from the base at step 60, of a budget of 0.1" in told
    assert "drawn back towards its base 2 time(s)" in told


def test_what_is_not_there_is_not_told_of(tmp_path):
    readme = write_readme(make_run(tmp_path / "run", "a", seed=1, error_rate=0.2, num_clips=2))
    assert contents.STEPS_FILE in readme
    assert contents.SKIPPED_STEPS_FILE not in readme
    assert f"`{contents.LAUNCH_FOLDER}`" not in readme


def test_every_name_of_a_file_is_explained_or_passes():
    names = {value for key, value in vars(contents).items() if key.endswith(("_FILE", "_FOLDER"))}
    explained = {name for name, _ in contents.CONTENTS}
    # these two are there for as long as a start is
    passing = {contents.LEASE_FILE, contents.STOP_FILE}
    of_an_export = {contents.SPEECH_FILE, contents.ADAPTOR_FILE}
    assert names <= explained | passing | of_an_export | {contents.README_FILE}


def test_each_test_set_has_its_rate(tmp_path):
    run = make_run(tmp_path / "run", "a", seed=1, error_rate=0.2, num_clips=2)
    log = RunLog(run, resume_step=60)
    sets = {"near\nand clear": {"mean_wer": 0.125}, "far": {"mean_wer": None}}
    log.add_evaluation({"step": 60, "wer": {"mean_wer": 0.25, "sets": sets}, "text": {}})
    log.close()
    lines = write_readme(run).splitlines()
    assert "of far unknown  " in lines
    assert any(line.startswith("of near") and line.endswith(" 12.50%  ") for line in lines)
