"""A run as its loggers show it: under an id that its folder keeps, with its configuration as config.json has it."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path

from kappaspeech.artefacts import read_json, write_json
from kappaspeech.config.run_config import RunConfig
from kappaspeech.errors import InputError
from kappaspeech.escaping import make_logger
from kappaspeech.loggers.curves import Curves, Kind
from kappaspeech.loggers.logger import RunToShow
from kappaspeech.redaction import redact_values
from kappaspeech.runs.contents import CURVES_FOLDER, LOGGERS_FILE

_log = make_logger(__name__)


def show_curves(run_dir: Path, config: RunConfig | None, *, resume_step: int, told: Mapping[Kind, int]) -> Curves:
    """The loggers that `config` names; without one, TensorBoard. They go on with the run of an earlier start.

    `told` is the last step of each kind that was recorded before.
    """
    names: Sequence[str] = config.training.loggers if config is not None else [CURVES_FOLDER]
    # TensorBoard has no runs but folders
    run_id = _keep_id(run_dir / LOGGERS_FILE) if set(names) - {CURVES_FOLDER} else ""
    shown = redact_values(config.model_dump(mode="json")) if config is not None else {}
    name = config.arm if config is not None else run_dir.name

    def describe(logger: str) -> RunToShow:
        return RunToShow(run_dir / logger, run_id, name, shown, resume_step)

    return Curves(names, describe, told=told)


def _keep_id(path: Path) -> str:
    """The run's id for loggers: the one of an earlier start, else a new one."""
    if path.exists():
        try:
            return str(read_json(path, schema_version=1)["run_id"])
        except (InputError, KeyError) as error:
            _log.warning("%s can't be read (%s): the loggers begin a new run.", path, error)
    run_id = uuid.uuid4().hex
    write_json(path, {"schema_version": 1, "run_id": run_id})
    return run_id
