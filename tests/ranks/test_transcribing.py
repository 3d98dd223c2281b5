"""`kappaspeech transcribe` on several ranks: one file, in the order of the recordings, to the byte what one rank writes.

That --nproc starts them by itself, tests/end_to_end/test_documents.py shows on docs/recipes/transcribing.md.
"""

from __future__ import annotations

import json
import signal

import pytest

from tests.made_exports import make_export
from tests.patience import patience


@pytest.fixture(scope="module")
def export(home, tmp_path_factory):
    return make_export(tmp_path_factory.mktemp("exported") / "export", home)


@pytest.fixture
def words(export, home, tmp_path):
    """A command line of 31 clips, one of which can't be read, in groups of 8."""
    (tmp_path / "broken.wav").write_bytes(b"no audio")
    given = [home / "speech/train", tmp_path / "broken.wav", home / "shards/test/*.tar"]
    return ["transcribe", export, *given, "--format", "jsonl", "--batch-size", "1", "--max-new-tokens", "6"]


def test_one_and_three_ranks_write_the_same_file(words, run_command, tmp_path):
    for ranks in (1, 3):
        done = run_command(*words, "--output", tmp_path / f"{ranks}.jsonl", ranks=ranks)
        assert done.returncode == 1, done.stderr[-3000:]
        assert done.stderr.count("1 of 31 recordings can't be read") == 1
        assert "Traceback" not in done.stderr
    one, three = ((tmp_path / f"{ranks}.jsonl").read_bytes() for ranks in (1, 3))
    assert one == three
    lines = [json.loads(line) for line in one.splitlines()]
    assert len({line.get("text") for line in lines}) > 5, "texts that are all alike would prove nothing"
    assert json.loads((tmp_path / "3.job.json").read_text())["num_ranks"] == 3


def test_a_job_whose_ranks_were_killed_goes_on_with_other_ranks(words, run_command, nursery, tmp_path):
    assert run_command(*words, "--output", tmp_path / "whole.jsonl").returncode == 1
    output = tmp_path / "cut.jsonl"
    # in its second round, of eight batches each
    killed = ["in_evaluation", "1", "11", "kill"]
    pids = nursery.start(*words, "--output", output, ranks=2, output=tmp_path / "log", sabotage=killed)
    codes = nursery.wait(pids, timeout_seconds=patience(60))
    said = (tmp_path / "log").read_text()
    assert codes[1] == -signal.SIGKILL, said
    assert codes[0] == 1, said
    assert "rank 1" in said
    assert "Traceback" not in said
    num_lines = output.read_bytes().count(b"\n")
    assert 0 < num_lines < 31
    done = run_command(*words, "--output", output, ranks=3)
    assert done.returncode == 1, done.stderr[-3000:]
    assert output.read_bytes() == (tmp_path / "whole.jsonl").read_bytes()


def test_hosts_with_other_weights_are_refused(words, run_command, tmp_path):
    done = run_command(*words, "--output", tmp_path / "a.jsonl", ranks=2, sabotage=("find_another_model", "1"))
    assert done.returncode == 2, done.stderr[-3000:]
    assert "the model is " in done.stderr
    assert not (tmp_path / "a.jsonl").exists() or not (tmp_path / "a.jsonl").read_bytes()
