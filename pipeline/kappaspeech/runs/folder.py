"""A run's folder: its inputs, its record, and its end. Written by rank 0."""

from __future__ import annotations

import json
import math
import platform
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kappaspeech.artefacts import digest_json, read_json, write_json, write_private, write_text
from kappaspeech.config.reading import read_secrets
from kappaspeech.config.run_config import RunConfig
from kappaspeech.errors import InputError, TrainingError
from kappaspeech.escaping import make_logger
from kappaspeech.package_versions import describe_versions
from kappaspeech.redaction import SECRETS_FILE, find_secrets, redact_values, restore_secrets
from kappaspeech.runs.contents import (
    CHECKPOINTS_FOLDER,
    CONFIG_FILE,
    DRIFT_FILE,
    FROZEN_FILE,
    HYPOTHESES_FOLDER,
    README_FILE,
    RECORD_FILE,
    SELECTION_FILE,
)
from kappaspeech.runs.plan_comparison import compare_plan
from kappaspeech.runs.readme import write_readme
from kappaspeech.selection.tensor_selection import TensorSelection

SCHEMA_VERSION = 1
_PACKAGES = ("kappaspeech", "torch", "deepspeed", "transformers", "openai-whisper", "webdataset", "numpy")
# A run's folder and name don't change what it computes.
_NAMING_KEYS = {"run_dir", "arm"}
_log = make_logger(__name__)


@dataclass(frozen=True)
class Movement:
    """The movement of a tensor in training: ‖W − W₀‖_F / ‖W₀‖_F, None if W₀ is zero; κ before and after, None if no matrix."""

    relative_frobenius: float | None
    kappa_before: float | None
    kappa_after: float | None


class RunFolder:
    """Paths of a run, and the small files that explain it. No other start may end a run that `start_id` began."""

    def __init__(self, path: Path, *, start_id: str | None = None) -> None:
        self.path = path
        self.start_id = start_id
        self.checkpoints = path / CHECKPOINTS_FOLDER
        self.hypotheses = path / HYPOTHESES_FOLDER

    def begin(self, config: RunConfig, *, selection: TensorSelection | None, rule: str, facts: Mapping[str, Any]) -> None:
        """Write the resolved configuration, the selection and `run.json` with `status` "running"."""
        self.path.mkdir(parents=True, exist_ok=True)
        whole = config.model_dump(mode="json")
        content = redact_values(whole)
        _write_secrets(self.path / SECRETS_FILE, find_secrets(whole))
        write_json(self.path / CONFIG_FILE, {"schema_version": SCHEMA_VERSION, **content})
        if selection is not None:
            selection.write(self.path / SELECTION_FILE)
        write_json(
            self.path / RECORD_FILE,
            {
                "schema_version": SCHEMA_VERSION,
                "start_id": self.start_id,
                "arm": config.arm,
                "selection_rule": rule,
                "config_digest": digest_json({key: value for key, value in content.items() if key not in _NAMING_KEYS}),
                "seed": config.seed,
                **facts,
                "git_commit": _git_commit(),
                "versions": describe_software(),
                "status": "running",
            },
        )
        write_text(self.path / README_FILE, write_readme(self.path))

    def describe(self, *, seconds_left: float | None) -> None:
        """Bring run.md up to date while the run trains. If that can't be done, its last text stays."""
        try:
            write_text(self.path / README_FILE, write_readme(self.path, seconds_left=seconds_left))
        except (OSError, InputError) as error:
            _log.warning("%s can't be brought up to date: %s", self.path / README_FILE, error)

    def end(self, status: str, **facts: Any) -> None:
        """Record the end of the run: "finished" is the marker of success, whatever a launcher's exit code says."""
        record = self.read_record()
        if record.get("start_id") != self.start_id:
            raise TrainingError(f"{self.path / RECORD_FILE} is another start's by now; what this one saved is left as it is.")
        record |= {"status": status, **facts}
        # the status first: the rest is for people
        write_json(self.path / RECORD_FILE, record)
        write_json(self.path / RECORD_FILE, {**record, "plan_comparison": compare_plan(self.path)})
        write_text(self.path / README_FILE, write_readme(self.path))

    def fail(self, reason: str) -> None:
        """Record that the run has failed, if this start began it; a disk that can't take even that hides no cause."""
        try:
            if (self.path / RECORD_FILE).exists() and self.read_record().get("start_id") == self.start_id:
                self.end("failed", reason=reason)
        except (OSError, InputError) as error:
            _log.warning("%s can't be brought up to date: %s", self.path / RECORD_FILE, error)

    def write_frozen(self, before: Mapping[str, str], after: Mapping[str, str]) -> None:
        """Write `frozen.json`. Raises `TrainingError` naming the tensors whose bytes changed."""
        changed = sorted(name for name in before if after.get(name) != before[name])
        write_json(self.path / FROZEN_FILE, {"schema_version": 1, "changed": changed, "before": before, "after": after})
        if changed:
            raise TrainingError(
                f"{len(changed)} frozen tensor(s) changed during training (first: {changed[0]}), which must never happen. "
                f"Both digests of each are in {self.path / FROZEN_FILE}; please report it."
            )

    def write_drift(self, moved: Mapping[str, Movement]) -> None:
        """Write `drift.json`: for each trained tensor of the LLM ‖W − W₀‖_F / ‖W₀‖_F, without those that began as zero, and for
        each matrix κ before and after; null is infinite."""
        measured = {name: item for name, item in moved.items() if item.kappa_before is not None}
        write_json(
            self.path / DRIFT_FILE,
            {
                "schema_version": 1,
                "relative_frobenius": {n: x.relative_frobenius for n, x in moved.items() if x.relative_frobenius is not None},
                "kappa_before": {name: _finite(item.kappa_before) for name, item in measured.items()},
                "kappa_after": {name: _finite(item.kappa_after) for name, item in measured.items()},
            },
        )

    def read_record(self) -> dict[str, Any]:
        """The content that `begin` and `end` wrote to `run.json`. Raises `InputError`."""
        record = read_json(self.path / RECORD_FILE, schema_version=SCHEMA_VERSION)
        if not isinstance(record.get("status"), str):
            raise InputError(f"{self.path / RECORD_FILE} doesn't hold the run's status, but {record.get('status')!r:.60}.")
        return record

    def read_config(self) -> RunConfig:
        """The configuration of the run. Raises `InputError` if this is no run folder."""
        if not (self.path / CONFIG_FILE).exists():
            raise InputError(f"{self.path} is no run folder: it has no config.json. Give the run_dir of a training.")
        content = read_json(self.path / CONFIG_FILE, schema_version=SCHEMA_VERSION)
        content.pop("schema_version")
        content = restore_secrets(content, read_secrets(self.path))
        return RunConfig.model_validate_json(json.dumps(content))


def describe_software() -> dict[str, str]:
    """The versions of Python and of the packages that a run computes with."""
    return {"python": platform.python_version(), **describe_versions(_PACKAGES)}


def _write_secrets(path: Path, secrets: Mapping[str, str]) -> None:
    """Write the values that config.json hides, readable by the file's owner alone; without any, no such file stays."""
    if not secrets:
        path.unlink(missing_ok=True)
        return
    write_private(path, json.dumps(secrets, indent=1) + "\n")


def _git_commit() -> str | None:
    """The commit of this code, with "+changes" if files differ from it; None outside its repository."""
    git = shutil.which("git")
    if git is None:
        return None
    here = Path(__file__)

    def ask(*words: str) -> str | None:
        done = subprocess.run([git, "-C", str(here.parent), *words], capture_output=True, text=True, check=False)
        return done.stdout.strip() if done.returncode == 0 else None

    # an environment may lie in another project's repository
    commit = ask("rev-parse", "HEAD") if ask("ls-files", "--error-unmatch", here.name) is not None else None
    if commit is None:
        return None
    return commit + ("+changes" if ask("status", "--porcelain", "--untracked-files=no") else "")


def _finite(value: float | None) -> float | None:
    """`value`, or None if it is infinite: JSON has no infinity."""
    return value if value is not None and math.isfinite(value) else None
