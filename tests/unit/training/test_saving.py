"""Checkpoints written while the training goes on."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from safetensors.torch import load_file

from kappaspeech.errors import TrainingError
from kappaspeech.runs.best import best_wer, mark_best
from kappaspeech.runs.checkpoints import list_checkpoints
from kappaspeech.runs.new_checkpoint import NewCheckpoint
from kappaspeech.runs.share_writer import ShareWriter
from kappaspeech.training import saving
from kappaspeech.training.cadence import Cadence
from kappaspeech.training.saving import SaveAtTheEnd, SaveEvery, Saver
from tests.made_engine import MadeEngine
from tests.patience import patience
from tests.unit.training import test_cadences
from tests.unit.training.test_cadences import surroundings

STATE: dict[str, Any] = {"words": ["as they were"]}


class Run:
    """A run of an engine that adds one to all tensors a step."""

    def __init__(self, folder: Path, *, every: int | None = 2) -> None:
        self.around = surroundings(folder)
        object.__setattr__(self.around, "lease", SimpleNamespace(check=lambda: None))
        self.engine: Any = MadeEngine()
        state: Any = SimpleNamespace(to_json=lambda: STATE)
        self.saver = Saver(self.engine, state, self.around, fingerprints={}, keep=10)
        self.every = every
        self.checkpoints = self.around.folder.checkpoints

    def take(self, num_steps: int, after: Callable[[int], str | None] = lambda _step: None) -> None:
        """Take steps; `after` is called after each, before anything is saved."""
        engine = self.engine

        class Step(Cadence):
            def after(self, step: int) -> str | None:
                engine.step()
                return after(step)

        cadences = [Step(), SaveAtTheEnd(self.saver, num_steps=num_steps), SaveEvery(self.saver, self.every)]
        test_cadences.run(self.around, cadences, total=num_steps)

    @property
    def saved(self) -> list[str]:
        return [path.name for path in list_checkpoints(self.checkpoints)]


@pytest.fixture
def gate(monkeypatch) -> threading.Event:
    """Nothing is written until it is set."""
    opened, real = threading.Event(), ShareWriter.write_piece

    def wait(self, piece):
        assert opened.wait(patience(20))
        return real(self, piece)

    monkeypatch.setattr(ShareWriter, "write_piece", wait)
    return opened


def test_steps_are_taken_while_a_checkpoint_is_written_and_it_holds_the_state_of_its_own(tmp_path, gate):
    run = Run(tmp_path, every=4)
    saved_meanwhile = []

    def after(step: int) -> None:
        if step == 7:
            # three steps since it was begun
            saved_meanwhile.append(run.saved)
            gate.set()

    run.take(8, after)
    assert saved_meanwhile == [[]]
    assert run.saved == ["step-000004", "step-000008"]
    for step in (4, 8):
        trained = load_file(run.checkpoints / f"step-{step:06d}/trained.safetensors")
        expected = MadeEngine().tensors["weights"]
        for _ in range(step):
            for tensor in expected.values():
                tensor += 1
        assert all((trained[name] == expected[name]).all() for name in expected)


def test_no_two_are_written_at_once(tmp_path, monkeypatch):
    real, spans = NewCheckpoint.end, []

    def timed(self, *arguments):
        began = time.monotonic()
        time.sleep(0.01)
        real(self, *arguments)
        spans.append((began, time.monotonic()))

    monkeypatch.setattr(NewCheckpoint, "end", timed)
    run = Run(tmp_path, every=1)
    run.take(5)
    assert len(spans) == 5
    assert all(ended <= began for (_, ended), (began, _) in itertools.pairwise(spans))


def test_what_goes_wrong_in_the_background_stops_the_run_at_the_next_step_in_the_same_words(tmp_path, monkeypatch):
    run = Run(tmp_path)
    taken = []

    def after(step: int) -> None:
        taken.append(step)
        while run.saver._writing is not None and not run.saver._writing.is_done:
            time.sleep(0.001)

    run.take(2)
    monkeypatch.setattr(ShareWriter, "write_piece", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    run = Run(tmp_path, every=3)
    with pytest.raises(TrainingError, match=r"step-000003 can't be written: \[Errno 28\] No space left on device. Older "):
        run.take(100, after)
    assert taken == [1, 2, 3, 4]
    assert run.saved == ["step-000002"]


def test_a_checkpoint_becomes_whole_though_the_run_then_fails(tmp_path, gate):
    run = Run(tmp_path)

    def after(step: int) -> None:
        if step == 3:
            threading.Timer(0.05, gate.set).start()
            raise ValueError("a matrix fell over")

    with pytest.raises(ValueError, match="a matrix fell over"):
        run.take(8, after)
    assert run.saved == ["step-000002"]


def test_without_memory_for_a_copy_the_steps_wait_and_it_is_said_once(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(saving, "free_memory_bytes", lambda: 90_000)
    run = Run(tmp_path)
    seen = []
    run.take(6, lambda step: seen.append((step, run.saved[-1:])))
    assert seen[2] == (3, ["step-000002"])
    assert seen[4] == (5, ["step-000004"])
    said = capsys.readouterr().err
    assert said.count("steps wait while checkpoints are written: a rank's copy on ") == 1
    assert "would take 6.7e-05 GB of the 9e-05 GB that are free for it" in said


def test_the_best_is_marked_once_it_is_whole_and_not_before(tmp_path, gate):
    run = Run(tmp_path)
    run.checkpoints.mkdir(parents=True)
    (run.checkpoints / "step-000001").mkdir()
    mark_best(run.checkpoints, step=1, mean_wer=0.9)
    run.saver.save(2, best_wer=0.5)
    assert best_wer(run.checkpoints) == 0.9
    gate.set()
    run.saver.finish()
    assert best_wer(run.checkpoints) == 0.5
    # of one that is saved already
    run.saver.save(2, best_wer=0.4)
    assert best_wer(run.checkpoints) == 0.4


def test_a_step_that_is_being_saved_is_not_waited_for_because_it_is_due_again(tmp_path, gate):
    """As if an evaluation has found the best so far, and its step is a regular checkpoint's too."""
    run = Run(tmp_path, every=2)
    run.saver.save(2, best_wer=0.5)
    SaveEvery(run.saver, 2).after(2)
    assert run.saved == []
    gate.set()
    run.saver.finish()
    assert run.saved == ["step-000002"]
    assert best_wer(run.checkpoints) == 0.5


def test_a_state_that_changes_afterwards_is_saved_as_it_was(tmp_path, gate, monkeypatch):
    monkeypatch.setitem(STATE, "words", ["as they were"])
    run = Run(tmp_path)
    run.saver.save(2)
    STATE["words"].append("later")
    gate.set()
    run.saver.finish()
    assert '"later"' not in (run.checkpoints / "step-000002/state.json").read_text()


def test_waiting_shows_life_only_while_something_is_written(tmp_path, gate, monkeypatch):
    """A stall is judged by it: a disk that hangs must not look alive, nor one that is slow dead."""
    monkeypatch.setattr(saving, "_GLANCE_SECONDS", 0.005)
    run = Run(tmp_path)
    run.saver.save(2)
    writing: Any = run.saver._writing
    ticks = []

    def check() -> None:
        ticks.append(run.around.phases.num_ticks)
        if len(ticks) == 10:
            writing._share.num_written += 1  # as a block that is written does
        if len(ticks) == 20:
            gate.set()

    run.around.watch.check = check
    run.saver.finish()
    assert ticks[:20] == [ticks[0]] * 10 + [ticks[0] + 1] * 10
