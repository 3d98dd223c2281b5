"""A run that is cut and resumed, told to a logger by real records; and what the logger must show of it."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from kappaspeech.config.run_config import RunConfig, read_run_config
from kappaspeech.loggers.values import distance_values, evaluation_values, step_values
from kappaspeech.runs.records import RunLog, StepRecord
from tests import tiny

SECRET = "hunter2-of-nobody"


def make_config(folder: Path, *loggers: str) -> RunConfig:
    """A run's configuration, with a secret in a URL."""
    shards = f"https://me:{SECRET}@host/x.tar?signature={SECRET}"
    path = tiny.write_config(folder / "run.yaml", folder, folder / "run", training__loggers=list(loggers))
    return read_run_config(path, overrides={"data.train": [{"shards": shards}], "arm": "κ of the smallest"})


def step(number: int) -> StepRecord:
    """A step's record, whose numbers tell the step."""
    rates = {"adaptor": 1e-3 / (number + 1), "llm": 2e-4}
    seconds, memory = 1.0 + number, 10**9 + number
    return StepRecord(
        number, 5.0 - number, 8.0, 8, rates, 0.5, seconds, 4.0, 4.0, 80.0, 0.3, {}, 0.0, 0.1, 0.1, {"en": 1.0}, {}, memory, "0",
        num_replayed_tokens=9, replay_nats=3.5, anchor_nats=0.25, hours_by_dataset={"shards/read/*.tar": 0.5, "{geübt, b}": 0.25},
    )  # fmt: skip


def evaluation(number: int) -> dict[str, Any]:
    """The record of an evaluation after so many steps."""
    languages = {"en": {"wer": 0.5 / (number + 1)}, "de": {"wer": None}}
    text = {"en": {"perplexity": 9.0 + number, "kl_nats": 0.125}, "de": {"perplexity": 8.0, "kl_nats": None}}
    return {"step": number, "wer": {"mean_wer": 0.5 / (number + 1), "languages": languages}, "text": text}


def distance(number: int) -> dict[str, Any]:
    return {"step": number, "kl_nats": 0.01 * number, "budget_nats": 0.1, "anchor_weight": 2.0, "languages": {"en": 0.1}}


def tell(config: RunConfig, *, first: int, last: int, resume_step: int, failed: bool = False) -> None:
    """Tell the run's log what happens in a start that takes steps `first` to `last`, as a training does."""
    log = RunLog(Path(config.run_dir), resume_step=resume_step, config=config)
    for number in range(first, last + 1):
        log.add_step(step(number))
        log.add_distance(distance(number + 1))
        if number % 2:
            log.add_evaluation(evaluation(number + 1))
    log.close(failed=failed)


def tell_cut_and_resumed(config: RunConfig) -> dict[tuple[str, int], float]:
    """Steps 0 to 4, then again from 2 to 7, as after a kill; and what must be shown, by name and step."""
    tell(config, first=0, last=4, resume_step=0, failed=True)
    tell(config, first=2, last=7, resume_step=2)
    shown: dict[tuple[str, int], float] = {}
    for number in range(8):
        shown |= {(name, number): value for name, value in step_values(asdict(step(number))).items()}
        shown |= {(name, number + 1): value for name, value in distance_values(distance(number + 1)).items()}
        if number % 2:
            shown |= {(name, number + 1): value for name, value in evaluation_values(evaluation(number + 1)).items()}
    return shown


def holds_secret(folder: Path) -> list[Path]:
    """The files in which the secret of the configuration stands, as it is or in UTF-16."""
    return [
        path for path in folder.rglob("*")
        if path.is_file() and path.name != "run.yaml"
        and any(SECRET.encode(code) in path.read_bytes() for code in ("utf-8", "utf-16-le"))
    ]  # fmt: skip


def said(caplog: pytest.LogCaptureFixture) -> list[str]:
    """The lines of this project, among all that libraries log."""
    return [record.getMessage() for record in caplog.records if record.name.startswith("kappaspeech")]
