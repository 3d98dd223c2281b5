"""Faults that a test puts into a rank before it starts. Each function takes the arguments that the test gave, as text."""

from __future__ import annotations

import itertools
import os
import resource
import signal
import time
from pathlib import Path
from typing import Any

from torch import Tensor

from kappaspeech.errors import InputError
from kappaspeech.evaluation import evaluate
from kappaspeech.evaluation.forgetting import read_texts
from kappaspeech.evaluation.transcribe import Transcriber
from kappaspeech.model import precision
from kappaspeech.model.speech_llm import SpeechLLM
from kappaspeech.runs.records import RunLog, StepRecord
from kappaspeech.runs.share_writer import ShareWriter
from kappaspeech.speech.held_out import list_test_samples
from kappaspeech.speech.stream import StepData
from kappaspeech.trained import identity
from kappaspeech.training import replay, run
from kappaspeech.training.stepper import Stepper
from kappaspeech.zero3.engine import TrainingEngine
from kappaspeech.zero3.host_copy import HostCopy
from kappaspeech.zero3.trained_states import TrainedStates


def at_step(rank: str, step: str, what: str) -> None:
    """Do `what` on a rank in the middle of its optimizer step number `step`, counted from this start."""
    _before(TrainingEngine, "step", int(rank), int(step), what)


def in_micro_batch(rank: str, number: str, what: str) -> None:
    """Do `what` on a rank before it computes the given micro-batch, counted from this start."""
    _before(SpeechLLM, "forward", int(rank), int(number), what)


def in_copy(rank: str, tensor: str, what: str) -> None:
    """Do `what` on a rank before it copies the given tensor of its share of checkpoints, counted from this start."""
    _before(HostCopy, "take", int(rank), int(tensor), what)


def in_save(rank: str, tensor: str, what: str) -> None:
    """Do `what` on a rank before it writes, in the background, the given tensor of its share, counted from this start."""
    _before(ShareWriter, "write_piece", int(rank), int(tensor), what)


def in_resume(rank: str, number: str, what: str) -> None:
    """Do `what` on a rank before it puts the given checkpoint's tensors back into its engine, counted from this start."""
    _before(TrainedStates, "restore", int(rank), int(number), what)


def in_evaluation(rank: str, batch: str, what: str) -> None:
    """Do `what` on a rank before it decodes the given batch of those it decodes, counted from this start."""
    _before(Transcriber, "decode", int(rank), int(batch), what)


def in_log(rank: str, step: str, what: str) -> None:
    """Do `what` on a rank before it records the given step, counted from this start."""
    _before(RunLog, "add_step", int(rank), int(step), what)


def limit_file_size(rank: str, num_bytes: str) -> None:
    """Let a rank write no file past a size: the error is another than a full disk's, its way through the program the same."""
    if os.environ["RANK"] == rank:
        resource.setrlimit(resource.RLIMIT_FSIZE, (int(num_bytes), int(num_bytes)))


def read_other_text(rank: str, name: str) -> None:
    """Let a rank find another line in the texts of a file of this name, as on a host with a file of its own."""
    if os.environ["RANK"] != rank:
        return

    def read(path: Path) -> list[str]:
        return [*read_texts(path), *(["a line of its own"] if path.name == name else [])]

    evaluate.read_texts = replay.read_texts = read


def miss_a_test_sample(rank: str) -> None:
    """Let a rank find all test samples but the last, as on a host with an older copy of the shards."""
    if os.environ["RANK"] == rank:
        evaluate.list_test_samples = lambda *given, **options: list_test_samples(*given, **options)[:-1]


def find_another_model(rank: str) -> None:
    """Let a rank find a model of other weights, as on a host with an older copy."""
    if os.environ["RANK"] == rank:
        identity._digest_weights = lambda _file: "0" * 64


def lack_a_package(rank: str) -> None:
    """Let a training's rank find a package missing, as on a host with less installed."""
    if os.environ["RANK"] == rank:

        def check(_config: Any) -> None:
            raise InputError("a package is missing here")

        run.check_packages = check


def fail_to_measure(rank: str) -> None:
    """Let a rank have no memory in which to time products, as on a GPU that another process holds."""
    if os.environ["RANK"] == rank:

        def measure(*_given: Any) -> Any:
            raise RuntimeError("CUDA out of memory")

        precision.measure_rates = measure


def spoil_loss(*faults: str) -> None:
    """Multiply the last rank's loss by a factor in global steps: "3:nan", "25:1e4"."""
    factors = {int(step): float(factor) for step, _, factor in (fault.partition(":") for fault in faults)}
    if int(os.environ["RANK"]) != int(os.environ["WORLD_SIZE"]) - 1:
        return
    now = [1.0]
    real_step, real_forward = Stepper.step, SpeechLLM.forward

    def step(self: Stepper, data: StepData, num_tokens: int) -> StepRecord | None:
        now[0] = factors.get(data.global_step, 1.0)
        return real_step(self, data, num_tokens)

    def forward(self: SpeechLLM, *inputs: Any, **options: Any) -> tuple[Tensor, ...]:
        return tuple(part * now[0] for part in real_forward(self, *inputs, **options))

    Stepper.step, SpeechLLM.forward = step, forward


def _before(owner: type, method: str, rank: int, number: int, what: str) -> None:
    if int(os.environ["RANK"]) != rank:
        return
    # any thread's calls
    real, calls = getattr(owner, method), itertools.count()

    def replaced(*arguments: Any, **named: Any) -> Any:
        if next(calls) == number:
            WHAT[what]()
        return real(*arguments, **named)

    setattr(owner, method, replaced)


def _raise() -> None:
    raise ValueError("a matrix fell over")


def _fill_the_disk() -> None:
    raise OSError(28, "No space left on device")


def _loop() -> None:
    while True:
        time.sleep(0.01)


WHAT = {
    "raise": _raise,
    "fill the disk": _fill_the_disk,
    "loop": _loop,
    "stop": lambda: os.kill(os.getpid(), signal.SIGSTOP),
    "kill": lambda: os.kill(os.getpid(), signal.SIGKILL),
    # the ranks of one start are a process group
    "kill all": lambda: os.killpg(0, signal.SIGKILL),
    "terminate": lambda: os.kill(os.getpid(), signal.SIGTERM),
}
