"""Traces of a few steps: these steps and no others, and no harm if they can't be written."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest
import torch

from kappaspeech.config.training_config import ProfileConfig
from kappaspeech.training import tracing
from kappaspeech.training.tracing import BeginTrace, EndTrace, Tracer
from tests.unit.training.test_cadences import surroundings


def take_steps(folder: Path, options: ProfileConfig, *, first: int, end: int, stop: bool = False) -> None:
    """Steps with an operation of their own size each, with the cadences around them in the order of `make_cadences`."""
    tracer = Tracer(options, surroundings(folder))
    ends, begins = EndTrace(tracer), BeginTrace(tracer)
    with ends, begins:
        begins.begin(first)
        for step in range(first, end):
            torch.ones(2).relu() if step % 2 else torch.ones(2).sigmoid()
            ends.after(step + 1)
            torch.ones(2).tanh()
            begins.after(step + 1)
        if stop:
            ends.end(end, "a wish")


def operations(path: Path) -> list[str]:
    events = json.loads(gzip.decompress(path.read_bytes()))["traceEvents"]
    return [event["name"].removeprefix("aten::") for event in events if event.get("cat") == "cpu_op"]


def test_the_trace_holds_its_steps_and_what_is_between_them(tmp_path, capsys):
    take_steps(tmp_path, ProfileConfig(steps=(3, 4)), first=0, end=8)
    # a large one takes minutes, in which nothing else is said
    assert f"writing {tmp_path / 'profile'}/steps-3-4.rank-0.json.gz, which takes minutes" in capsys.readouterr().err
    (path,) = (tmp_path / "profile").iterdir()
    assert path.name == "steps-3-4.rank-0.json.gz"
    found = operations(path)
    assert [found.count(name) for name in ("relu", "sigmoid", "tanh")] == [1, 1, 1]


def test_a_large_trace_is_told_and_a_sign_of_life_while_it_is_compressed(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(tracing, "_TELL_SECONDS", 0.0)
    monkeypatch.setattr(tracing, "_BLOCK_BYTES", 100)
    around = surroundings(tmp_path)
    tracer = Tracer(ProfileConfig(steps=(0, 0)), around)
    tracer.begin(0)
    torch.ones(2).relu()
    tracer.end(1)
    assert "100% of 0 MB are compressed" in capsys.readouterr().err
    assert around.phases.num_ticks > 2
    assert "relu" in operations(tmp_path / "profile/steps-0-0.rank-0.json.gz")


@pytest.mark.parametrize(("first", "end"), [(4, 8), (0, 4)])
def test_a_start_or_an_end_amid_the_steps_leaves_those_that_it_took(tmp_path, first, end):
    take_steps(tmp_path, ProfileConfig(steps=(3, 4)), first=first, end=end, stop=True)
    (path,) = (tmp_path / "profile").iterdir()
    found = operations(path)
    assert (found.count("relu"), found.count("sigmoid")) == ((0, 1) if first else (1, 0))


def test_a_run_beyond_them_is_not_traced(tmp_path):
    take_steps(tmp_path, ProfileConfig(steps=(3, 4)), first=5, end=8)
    assert not (tmp_path / "profile").exists()


def test_a_disk_that_takes_no_trace_ends_nothing(tmp_path, caplog):
    (tmp_path / "profile").touch()
    take_steps(tmp_path, ProfileConfig(steps=(0, 0)), first=0, end=2)
    assert "training.profile: the trace can't be written (" in caplog.text


def test_steps_in_the_wrong_order_are_refused():
    with pytest.raises(ValueError, match=r"training.profile.steps is \[5, 4\]: give the first step, then the last"):
        ProfileConfig(steps=(5, 4))
