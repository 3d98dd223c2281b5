"""The run's page for people, while the run goes on."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from kappaspeech.artefacts import read_json, write_json
from kappaspeech.json_lines import dump_line
from kappaspeech.ranks.cluster import SingleProcess
from kappaspeech.runs.folder import RunFolder
from kappaspeech.training import describing
from kappaspeech.training.describing import Describe
from tests.made_runs import NUM_STEPS, make_run


def make_cadence(folder, checked: list[str]) -> Describe:
    forecast: Any = SimpleNamespace(seconds_left=lambda step: 60.0 * (NUM_STEPS - step))
    lease = SimpleNamespace(check=lambda: checked.append("lease"))
    around: Any = SimpleNamespace(is_writer=SingleProcess().rank == 0, folder=RunFolder(folder), lease=lease)
    return Describe(forecast, around)


def running(tmp_path):
    """A run's folder as it is after twenty of its steps."""
    folder = make_run(tmp_path / "run", "a", seed=1, error_rate=0.2, num_clips=2)
    write_json(folder / "run.json", {**read_json(folder / "run.json", schema_version=1), "status": "running"})
    steps = [{"step": step, "loss_nats": 1.5, "seconds": 2.0} for step in range(20)]
    (folder / "steps.jsonl").write_text("".join(map(dump_line, steps)))
    return folder


def test_the_page_tells_the_present_step_and_the_time_left(tmp_path):
    folder, checked = running(tmp_path), []
    make_cadence(folder, checked).after(20)
    page = (folder / "run.md").read_text(encoding="utf-8")
    assert f"running: step 20 of {NUM_STEPS}" in page
    assert "about 0:40 h left, as of 20" in page
    assert checked == ["lease"]


def test_the_page_is_written_once_in_a_while(tmp_path, monkeypatch):
    folder, checked = running(tmp_path), []
    cadence = make_cadence(folder, checked)
    for step in range(20, 30):
        cadence.after(step)
    assert checked == ["lease"]
    now = describing.time.monotonic()
    monkeypatch.setattr(describing.time, "monotonic", lambda: now + describing._INTERVAL_SECONDS + 1)
    cadence.after(30)
    assert checked == ["lease", "lease"]
    assert "about 0:30 h left" in (folder / "run.md").read_text(encoding="utf-8")


def test_a_page_that_cannot_be_written_stops_no_training(tmp_path, caplog):
    folder, checked = running(tmp_path), []
    (folder / "run.md").unlink()
    (folder / "run.md").mkdir()
    make_cadence(folder, checked).after(20)
    assert "can't be brought up to date" in caplog.text
