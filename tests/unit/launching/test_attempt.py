"""The end of a start, whatever its launcher says. Shell scripts stand for launchers, with real processes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from kappaspeech.errors import RankFailure, TrainingError
from kappaspeech.launching import attempt as attempts
from kappaspeech.launching import leftovers, reports, supervisor
from kappaspeech.launching.attempt import Signals, judge, run_attempt
from kappaspeech.launching.command_lines import CommandLine
from kappaspeech.launching.reports import RankReport
from kappaspeech.runs.lease import Lease, make_start_id
from tests.patience import patience


def start(run_dir: Path, script: str, *, mark: str = "m"):
    with Signals() as signals:
        return run_attempt(CommandLine(("bash", "-c", script)), mark=mark, run_dir=run_dir, signals=signals, stall_seconds=60)


def record(run_dir: Path, status: str) -> str:
    content = json.dumps({"schema_version": 1, "status": status})
    return f"echo '{content}' > {run_dir}/new; mv {run_dir}/new {run_dir}/run.json"


def test_a_launcher_that_ends_well_without_a_finished_run_has_failed(tmp_path):
    ended = start(tmp_path, "exit 0")
    assert (ended.status, ended.exit_code) == ("failed", 1)
    assert "the launcher ended with 0 before the run began" in ended.causes[0]


def test_a_finished_run_counts_whatever_its_launcher_says(tmp_path):
    assert start(tmp_path, f"{record(tmp_path, 'finished')}; exit 143").status == "finished"


def test_the_status_of_an_earlier_start_counts_for_nothing(tmp_path):
    (tmp_path / "run.json").write_text('{"schema_version": 1, "status": "finished"}')
    assert start(tmp_path, "exit 0").status == "failed"


def test_what_another_start_says_of_the_run_meanwhile_counts_for_nothing(tmp_path):
    content = json.dumps({"schema_version": 1, "status": "failed", "start_id": "another/1"})
    script = f"echo '{content}' > {tmp_path}/run.json; sleep 1; touch {tmp_path}/survived; exit 3"
    ended = start(tmp_path, script)
    assert (tmp_path / "survived").exists(), ended
    assert "the launcher ended with 3 before the run began" in ended.causes[0]
    own = json.dumps({"schema_version": 1, "status": "finished", "start_id": "m/1"})
    assert start(tmp_path, f"echo '{own}' > {tmp_path}/new; mv {tmp_path}/new {tmp_path}/run.json").status == "finished"


def test_a_run_that_is_being_trained_is_not_started_again(tmp_path, fake_start):
    request = fake_start(f"touch {tmp_path}/started")
    lease = Lease(tmp_path, make_start_id())
    lease.acquire()
    ended = supervisor.supervise(request, max_restarts=5, first_delay_seconds=0.1)
    lease.release()
    assert ended.exit_code == 2
    assert "has been trained in for" in ended.causes[0]
    assert not (tmp_path / "started").exists()


def test_orphans_of_a_start_are_ended_and_nothing_else_is(tmp_path):
    other = subprocess.Popen(["sleep", str(patience(60))], env={**os.environ, leftovers.VARIABLE: "m2"})
    try:
        script = f"setsid sleep 60 & echo $! > {tmp_path}/orphan; {record(tmp_path, 'running')}; kill -9 $$"
        ended = start(tmp_path, script, mark="m")
        assert "was killed by signal 9 with the run's status 'running'" in ended.causes[0]
        pid = int((tmp_path / "orphan").read_text())
        assert not Path(f"/proc/{pid}").exists() or "Z" in Path(f"/proc/{pid}/stat").read_text().split()[2]
        assert other.poll() is None
    finally:
        other.kill()
        other.wait()


def test_a_launcher_that_outlives_a_failed_rank_is_ended(tmp_path, monkeypatch):
    monkeypatch.setattr(attempts, "GRACE_SECONDS", 0.5)
    folder = reports.report_folder(tmp_path, "m")
    folder.mkdir(parents=True)
    (folder / "rank-00001.json").write_text(
        json.dumps({"rank": 1, "host": "h2", "cause": "disk full", "exit_code": 1, "is_echo": False})
    )
    began = time.monotonic()
    ended = start(tmp_path, f"trap '' TERM INT; sleep {patience(60)}")
    assert time.monotonic() - began < patience(10)
    assert ended.causes == ("rank 1 on h2: disk full",)


def test_a_signal_asks_the_ranks_to_stop_and_the_file_goes_away_again(tmp_path):
    script = f"until [ -e {tmp_path}/STOP ]; do sleep 0.05; done; {record(tmp_path, 'resumable')}; exit 0"
    timer = threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGTERM))
    timer.start()
    ended = start(tmp_path, script)
    assert (ended.status, ended.exit_code) == ("resumable", 0)
    assert not (tmp_path / "STOP").exists()


def test_a_stop_file_of_the_users_stays(tmp_path):
    (tmp_path / "STOP").touch()
    start(tmp_path, "exit 0")
    assert (tmp_path / "STOP").exists()


def test_own_causes_come_before_those_of_ranks_that_only_followed(tmp_path, monkeypatch):
    monkeypatch.setenv(leftovers.VARIABLE, "m")
    for rank, error in ((0, RankFailure(1, "TrainingError: no room")), (1, TrainingError("no room"))):
        monkeypatch.setenv("RANK", str(rank))
        reports.write_report(tmp_path, error)
    first, second = reports.read_reports(tmp_path, "m")
    assert (first.rank, first.cause, second.rank) == (1, "no room", 0)


def test_a_rank_that_said_nothing_is_named_before_those_that_lost_it():
    lost = RankReport(0, "h1", "RuntimeError: [gloo] Connection closed by peer", 1, is_echo=True)
    full = RankReport(2, "h3", "no space left", 1, is_echo=False)
    ended = judge("running", 247, [lost, full], hosts_by_rank=["h1", "h2", "h3"], problems=["h2 doesn't answer"])
    assert [cause.split(":")[0].split(" ended")[0] for cause in ended.causes] == [
        "rank 2 on h3",
        "rank 1 on h2",
        "rank 0 on h1",
        "h2 doesn't answer",
    ]


def test_a_report_that_cannot_be_written_does_not_hide_the_error(tmp_path, monkeypatch):
    monkeypatch.setenv(leftovers.VARIABLE, "m")
    (tmp_path / "launch").write_text("in the way")
    reports.write_report(tmp_path, TrainingError("x"))
    assert reports.read_reports(tmp_path, "m") == []


@pytest.fixture
def fake_start(monkeypatch, tmp_path):
    """`supervise` with starts that a list of scripts stands for."""

    def prepare(*scripts: str) -> supervisor.Request:
        left = list(scripts)
        monkeypatch.setattr(
            supervisor,
            "prepare_start",
            lambda *_, **__: supervisor.Start(CommandLine(("bash", "-c", left.pop(0))), mark=f"m{len(left)}"),
        )
        return supervisor.Request(("c.yaml",), tmp_path, num_ranks=1)

    return prepare


def test_a_run_is_started_again_until_it_finishes(tmp_path, fake_start):
    request = fake_start("exit 1", "kill -9 $$", record(tmp_path, "finished"))
    assert supervisor.supervise(request, max_restarts=2, first_delay_seconds=0.1).status == "finished"


def test_giving_up_lists_the_cause_of_every_start(fake_start):
    ended = supervisor.supervise(fake_start("exit 1", "kill -9 $$"), max_restarts=1, first_delay_seconds=0.1)
    assert ended.exit_code == 1
    assert [cause.split(":")[0] for cause in ended.causes] == ["start 1", "start 2"]
    assert "killed by signal 9" in ended.causes[1]


def test_wrong_input_is_not_tried_again(fake_start):
    assert supervisor.supervise(fake_start("exit 2"), max_restarts=5, first_delay_seconds=0.1).exit_code == 2


def test_a_run_stopped_by_its_own_wish_is_not_started_again(tmp_path, fake_start):
    request = fake_start(f"{record(tmp_path, 'resumable')}; exit 0")
    assert supervisor.supervise(request, max_restarts=5, first_delay_seconds=0.1).exit_code == 0


def test_the_leftovers_script_needs_nothing_of_this_project(tmp_path):
    source = Path(leftovers.__file__).read_text(encoding="utf-8")
    process = subprocess.Popen(["sleep", str(patience(60))], env={**os.environ, leftovers.VARIABLE: "alone"})
    os.kill(process.pid, signal.SIGSTOP)
    done = subprocess.run(
        [sys.executable, "-I", "-", "alone"],
        input=source,
        capture_output=True,
        text=True,
        cwd=tmp_path,
        timeout=patience(30),
        check=True,
    )
    assert done.stdout.strip() == "1"
    assert process.wait(timeout=patience(5)) == -signal.SIGKILL
