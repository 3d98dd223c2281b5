"""Work beside a run's steps, of which the loop needs to know nothing."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from kappaspeech.config.training_config import TrainingConfig
from kappaspeech.ranks.cluster import SingleProcess
from kappaspeech.runs.best import mark_best, read_best
from kappaspeech.runs.contents import checkpoint_path
from kappaspeech.runs.folder import RunFolder
from kappaspeech.speech.stream import StepData
from kappaspeech.training.cadence import Cadence
from kappaspeech.training.cadences import StopWhenAsked, make_cadences
from kappaspeech.training.evaluating import Evaluator
from kappaspeech.training.forecast import Forecast
from kappaspeech.training.loop import Outcome, TrainingLoop
from kappaspeech.training.phases import PhaseClock
from kappaspeech.training.saving import SaveAtTheEnd, SaveEvery
from kappaspeech.training.stopping import StopRequest
from kappaspeech.training.surroundings import Surroundings


def surroundings(folder) -> Surroundings:
    watch: Any = SimpleNamespace(check=lambda: None, posts=[])
    lease: Any = SimpleNamespace(check=lambda: None)
    return Surroundings(SingleProcess(), RunFolder(folder), lease, PhaseClock(), StopRequest(folder), watch)


class Stream:
    """Steps without data, as many as are asked for."""

    def steps(self, step: int, *, hint: tuple[int, int]):
        while True:
            yield StepData(step, (), (), {}, wait_seconds=0.0, padding=0.0, llm_padding=0.0, hint=hint)
            step += 1


def run(around: Surroundings, cadences: list[Cadence], *, begin: int = 0, total: int = 6) -> tuple[Outcome, list[int]]:
    """Take steps that do nothing; the outcome, and which were taken."""
    taken: list[int] = []
    state: Any = SimpleNamespace(hint=(0, 0), totals=SimpleNamespace(check_bad_samples=lambda: None))

    def take_step(data: StepData, _num_tokens: int) -> None:
        taken.append(data.global_step)

    stream: Any = Stream()
    forecast = Forecast(TrainingConfig(num_steps=total))
    loop = TrainingLoop(stream, take_step, state, around, cadences=cadences, forecast=forecast)
    return loop.run(begin, total), taken


class TellEvery(Cadence):
    """The worked example of docs/architecture.md: a cadence of one file."""

    def __init__(self, told: list[str], every: int) -> None:
        self._told = told
        self._every = every

    def after(self, step: int) -> str | None:
        if step % self._every == 0:
            self._told.append(f"{step} steps")
        return None


class Saved(list):
    """In the saver's place: the steps after which it was asked to save, each once."""

    def save(self, step: int) -> None:
        if step not in self:
            self.append(step)

    def look(self) -> None:
        pass

    def finish(self) -> None:
        pass


def test_a_cadence_is_added_without_touching_the_loop(tmp_path):
    told: list[str] = []
    outcome, taken = run(surroundings(tmp_path), [TellEvery(told, 2)])
    assert (outcome.status, outcome.step, taken) == ("finished", 6, [0, 1, 2, 3, 4, 5])
    assert told == ["2 steps", "4 steps", "6 steps"]


def test_a_run_is_saved_every_so_many_steps_and_where_it_ends(tmp_path):
    saved: Any = Saved()
    run(surroundings(tmp_path), [SaveAtTheEnd(saved, num_steps=6), SaveEvery(saved, 4)], begin=2)
    assert saved == [4, 6]


def test_a_reason_of_a_cadence_stops_the_run_once_all_have_had_their_turn(tmp_path):
    class Enough(Cadence):
        def after(self, step: int) -> str | None:
            return "it is enough" if step == 3 else None

    told: list[str] = []
    saved: Any = Saved()
    outcome, taken = run(surroundings(tmp_path), [SaveAtTheEnd(saved, num_steps=6), Enough(), TellEvery(told, 3)])
    assert (outcome.status, outcome.reason, taken, told, saved) == ("resumable", "it is enough", [0, 1, 2], ["3 steps"], [3])


def test_a_wish_is_heard_before_the_next_step_and_its_file_removed(tmp_path):
    class Touch(Cadence):
        def after(self, step: int) -> str | None:
            if step == 2:
                (tmp_path / "STOP").touch()
            return None

    around = surroundings(tmp_path)
    outcome, taken = run(around, [Touch(), StopWhenAsked(around)])
    assert (outcome.status, outcome.step, taken) == ("resumable", 2, [0, 1])
    assert outcome.reason == f"the file {tmp_path / 'STOP'} on rank 0"
    assert not (tmp_path / "STOP").exists()


class Evaluated:
    """A run whose evaluations and checkpoints are told in place of made; `rates` are the WERs by step."""

    def __init__(self, around: Surroundings, monkeypatch, *, rates: dict[int, float | None]) -> None:
        self.told: list[str] = []
        self.recorded: list[int] = []
        self._around, self._rates = around, rates
        monkeypatch.setattr(Evaluator, "measure", lambda _, step, **_times: self._measure(step))

    def save(self, step: int, *, best_wer: float | None = None) -> None:
        folder = checkpoint_path(self._around.folder.checkpoints, step)
        if not folder.exists():
            self.told.append(f"saved {step}")
            folder.mkdir(parents=True)
        if best_wer is not None:
            mark_best(folder.parent, step=step, mean_wer=best_wer)

    def look(self) -> None:
        pass

    def finish(self) -> None:
        pass

    def evaluated_steps(self) -> set[int]:
        return set(self.recorded)

    def add_evaluation(self, record: dict[str, Any]) -> None:
        self.recorded.append(record["step"])

    def _measure(self, step: int) -> dict[str, Any] | None:
        self.told.append(f"evaluated {step}")
        if step not in self._rates:
            self._around.stop.known_reason = "a wish"
            return None
        return {"step": step, "wer": {"mean_wer": self._rates[step]}}

    def cadences(self, *, keep_best: bool = False) -> list[Cadence]:
        """The cadences of a configuration of six steps."""
        options = {"evaluate_every_steps": 2, "evaluate_every_minutes": None, "checkpoint_every_steps": 4, "profile": None}
        config: Any = SimpleNamespace(training=SimpleNamespace(num_steps=6, keep_best=keep_best, **options))
        state: Any = SimpleNamespace(totals=SimpleNamespace(train_seconds=0.0))
        loaded: Any = SimpleNamespace(test_set=(), assembly=None, measured={})
        known: Any = {
            "saver": self,
            "log": self,
            "forecast": SimpleNamespace(time_evaluation=lambda _: None, seconds_left=lambda _: 1.0),
        }
        partitioned: Any = None
        return list(make_cadences(config, loaded, partitioned, state, self._around, **known))


def test_a_run_is_saved_after_its_evaluations_but_before_the_last(tmp_path, monkeypatch):
    around = surroundings(tmp_path)
    made = Evaluated(around, monkeypatch, rates=dict.fromkeys((0, 2, 4, 6), 0.5))
    run(around, made.cadences())
    assert made.told == ["evaluated 0", "evaluated 2", "evaluated 4", "saved 4", "saved 6", "evaluated 6"]
    assert made.recorded == [0, 2, 4, 6]


@pytest.mark.parametrize(
    ("rates", "best"), [({2: 0.4, 4: 0.3, 6: 0.35}, 4), ({2: 0.3, 4: 0.3, 6: 0.3}, 2), ({2: None, 4: None, 6: 0.9}, 6)]
)
def test_the_checkpoint_of_lowest_wer_is_kept_and_never_the_untrained_one(tmp_path, monkeypatch, rates, best):
    around = surroundings(tmp_path)
    run(around, Evaluated(around, monkeypatch, rates={0: 0.1, **rates}).cadences(keep_best=True))
    assert read_best(around.folder.checkpoints) == checkpoint_path(around.folder.checkpoints, best)


def test_an_evaluation_that_a_wish_cuts_short_is_owing_at_the_next_start(tmp_path, monkeypatch):
    around = surroundings(tmp_path)
    made = Evaluated(around, monkeypatch, rates={0: 0.5, 2: 0.4})
    outcome, taken = run(around, made.cadences())
    assert (outcome.status, outcome.reason, taken) == ("resumable", "a wish on rank 0", [0, 1, 2, 3])
    assert made.recorded == [0, 2]
    assert made.told[-2:] == ["evaluated 4", "saved 4"]
    made._rates |= {4: 0.4, 6: 0.4}
    around.stop.known_reason = None
    made.told.clear()
    run(around, made.cadences(), begin=4)
    assert made.told == ["evaluated 4", "saved 6", "evaluated 6"]
