"""Trials trained as processes of their own: one failing or killed takes no other with it, and none is trained twice at once."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import IO

from kappaspeech.comparison.experiment import Experiment, Trial
from kappaspeech.comparison.trials import read_state
from kappaspeech.errors import KappaSpeechError, TrainingError
from kappaspeech.parenthood import as_helper
from kappaspeech.signals import Handling

# sysexits.h EX_TEMPFAIL, as `kappaspeech train` has it
EXIT_RESUMABLE = 75


@dataclass(frozen=True)
class Failure:
    """A trial that didn't finish, and why: the last error of its training, or how it ended."""

    trial: Trial
    cause: str
    exit_code: int


class TrialRunner:
    """Trains trials, passing signals on to their processes, which answer with a checkpoint. A context, for the main thread."""

    def __init__(self, experiment: Experiment, *, say: Callable[[str], None]) -> None:
        self._experiment = experiment
        self._say = say
        self._children: dict[int, subprocess.Popen[bytes]] = {}
        self._lock = threading.Lock()
        self._handling = Handling(self._pass_on)
        self.stopped_by: str | None = None

    def __enter__(self) -> TrialRunner:
        self._handling.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self._handling.__exit__()

    def _pass_on(self, number: int, _frame: FrameType | None) -> None:
        self.stopped_by = signal.Signals(number).name
        for child in list(self._children.values()):
            if child.poll() is None:
                child.send_signal(number)

    def train(self, trials: Sequence[Trial], *, num_side_by_side: int = 1) -> list[Failure]:
        """Train `trials` in their order, that many at a time; return those that didn't finish. Finished ones are left alone."""
        if num_side_by_side == 1:
            return [failure for trial in trials if (failure := self._train_one(trial))]
        with ThreadPoolExecutor(num_side_by_side) as pool:
            return [failure for failure in pool.map(self._train_one, trials) if failure]

    def _train_one(self, trial: Trial) -> Failure | None:
        label = f"[{trial.number}] {trial.arm.name}, seed {trial.seed}"
        if self.stopped_by:
            return Failure(trial, f"stopped by {self.stopped_by} before it began", EXIT_RESUMABLE)
        try:
            with locked(trial) as lock:
                if read_state(trial) == "finished":
                    self._say(f"{label}: finished before")
                    return None
                self._say(f"{label}: training; its output goes to {trial.log_path}")
                before = trial.log_path.stat().st_size if trial.log_path.exists() else 0
                code = self._run(trial, lock)
        except KappaSpeechError as error:
            self._say(f"{label}: {error}")
            return Failure(trial, str(error), error.exit_code)
        state = read_state(trial)
        if state == "finished" and code == 0:
            self._say(f"{label}: finished")
            return None
        # a status counts if this start can have written it: one that failed early leaves the last one's
        is_resumable = state == "resumable" and code in (0, EXIT_RESUMABLE)
        told = "it was stopped; the same command continues it" if is_resumable else _last_error(trial.log_path, before)
        cause = told or f"its training ended with exit code {code} and said no more than {trial.log_path}"
        self._say(f"{label}: {cause}")
        return Failure(trial, cause, EXIT_RESUMABLE if is_resumable else code)

    def _run(self, trial: Trial, lock: IO[bytes] | None) -> int:
        trial.log_path.parent.mkdir(parents=True, exist_ok=True)
        with trial.log_path.open("ab") as log:
            with self._lock:
                child = subprocess.Popen(
                    _command(trial.config_path, num_ranks=self._experiment.config.num_ranks),
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    # told to stop by this process alone: a terminal's Ctrl-C would reach it as a second wish, to end at once
                    start_new_session=True,
                    # the child holds the lock too: should this process be killed, nobody trains the same run beside it
                    pass_fds=[lock.fileno()] if lock else [],
                )
                self._children[trial.number] = child
            if self.stopped_by:
                child.send_signal(signal.SIGTERM)
            return child.wait()


def _command(config_path: Path, *, num_ranks: int) -> list[str]:
    ranks = ["--nproc", str(num_ranks)] if num_ranks > 1 else []
    return [sys.executable, "-m", "kappaspeech", "train", *ranks, "--", str(config_path)]


@contextmanager
def locked(trial: Trial) -> Iterator[IO[bytes] | None]:
    """Hold a trial for this process and the training it starts. Raises `TrainingError` if another holds it.

    None on a file system without locks.
    """
    try:
        with _lock(trial.folder, trial.name, waits=False) as file:
            yield file
    except BlockingIOError:
        raise TrainingError(f"{trial.run_dir} is being trained by another process. Wait for it, or end it.") from None


@contextmanager
def _lock(folder: Path, name: str, *, waits: bool) -> Iterator[IO[bytes] | None]:
    path = folder / "locks" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab") as file:
        held = True
        try:
            fcntl.flock(file, fcntl.LOCK_EX if waits else fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise
        except OSError:
            held = False
        yield file if held else None


def _last_error(log: Path, start: int) -> str | None:
    """The last error in a training's log, from byte `start` on."""
    lines = log.read_bytes()[start:].decode(errors="replace").split("\n")
    return next((line.removeprefix("error: ") for line in reversed(lines) if line.startswith("error: ")), None)


def make_ranking(experiment: Experiment) -> None:
    """Scan the base's LLM if the ranking isn't there yet; on all cores. Raises `TrainingError` if the scan fails.

    Array tasks that begin together wait for the one that scans.
    """
    path = experiment.ranking_path
    if path.exists() or not experiment.needs_ranking:
        return
    with _lock(experiment.output, "ranking", waits=True):
        if path.exists():
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "kappaspeech", "scan", f"--output={path}", "--", experiment.base.model.llm]
        # a scan that outlived this process would write beside the next one's
        code = subprocess.run(command, stdin=subprocess.DEVNULL, env={**os.environ, **as_helper()}, check=False).returncode
    if code != 0:
        raise TrainingError(f"The scan of {experiment.base.model.llm} ended with exit code {code}; it says why above.")
