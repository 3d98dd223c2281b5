"""Finished runs of an experiment, kept without weights: all that a comparison reads of each, some 70 kB."""

from __future__ import annotations

import json
import shutil
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kappaspeech.outputs import write_with
from kappaspeech.outside import explained

# of a run's folder what no comparison reads
UNREAD = ("checkpoints", "tensorboard")


@dataclass(frozen=True)
class Here:
    """The facts of this machine that must be a run's too, and the digest of the adaptor that runs begin with, if there is one."""

    versions: Mapping[str, str]
    dtype: str
    adaptor_digest: str | None

    def compares_with(self, record: Mapping[str, Any]) -> bool:
        """True if a run of this `record` may stand beside those that are trained here."""
        return record.get("versions") == self.versions and record.get("dtype") == self.dtype

    def begins_like(self, record: Mapping[str, Any]) -> bool:
        """True if a run of this `record` began with the adaptor that those begin with that are trained here."""
        origin = record.get("initial_adaptor")
        return self.adaptor_digest is not None and isinstance(origin, dict) and origin.get("digest") == self.adaptor_digest


def keep_runs(folder: Path, archive: Path) -> None:
    """Write all that a comparison reads of the finished runs in `folder`."""
    finished = find_finished(folder)

    def write(path: Path) -> None:
        with tarfile.open(path, "w:xz") as tar:
            for run in finished:
                tar.add(run, f"runs/{run.name}", filter=_without_weights)

    write_with(archive, write)


def find_finished(folder: Path) -> list[Path]:
    """The folders of finished runs of the comparison in `folder`."""
    records = sorted((folder / "runs").glob("*/run.json"))
    return [path.parent for path in records if json.loads(path.read_text(encoding="utf-8")).get("status") == "finished"]


def _without_weights(member: tarfile.TarInfo) -> tarfile.TarInfo | None:
    """A part of a run's folder as it goes into an archive, without the names of who made it; None if no comparison reads it."""
    if any(part in UNREAD for part in Path(member.name).parts):
        return None
    member.uid = member.gid = member.mtime = 0
    member.uname = member.gname = ""
    return member


def bring_runs(archive: Path, folder: Path, trials: Sequence[str], here: Here) -> list[str]:
    """Put finished runs of `archive` into the comparison in `folder`; return their names.

    Runs of other versions or of another dtype stay behind, since they don't compare with what is trained here. The arms of a
    seed begin with one adaptor, and another machine's is another one: of runs that began with another than the one here, only
    whole seeds come, all of `trials`, and only those of which `folder` has no run. Raises `InputError` if the archive is torn.
    """
    there = {path.name for path in (folder / "runs").glob("*")}
    with explained(f"{archive} can't be read", "Bring it back from a copy, or remove it to train every trial here."):
        files = _read_files(archive)
        records = {name: dict(json.loads(parts[Path("run.json")])) for name, parts in files.items()}
    fitting = {name for name, record in records.items() if here.compares_with(record)}
    split = {seed_of(name) for name in there} | {seed_of(name) for name in trials if name not in fitting}
    brought = [
        name for name in trials if name in fitting - there and (here.begins_like(records[name]) or seed_of(name) not in split)
    ]
    for name in brought:
        _put(folder / "runs" / name, files[name])
    return brought


def _read_files(archive: Path) -> dict[str, dict[Path, bytes]]:
    """The files of each run, by their paths in its folder, by the name of the run."""
    files: dict[str, dict[Path, bytes]] = {}
    with tarfile.open(archive) as tar:
        for member in tar:
            path = Path(member.name)
            if _is_of_run(path) and (content := tar.extractfile(member) if member.isfile() else None):
                files.setdefault(path.parts[1], {})[Path(*path.parts[2:])] = content.read()
    return files


def _put(run: Path, files: Mapping[Path, bytes]) -> None:
    """Make the folder of a run, which appears by one rename: half of it would pass for a finished one."""
    made = run.with_name(f".{run.name}.tmp")
    shutil.rmtree(made, ignore_errors=True)
    for path, content in files.items():
        (made / path).parent.mkdir(parents=True, exist_ok=True)
        (made / path).write_bytes(content)
    made.rename(run)


def _is_of_run(path: Path) -> bool:
    """True for the name of a run's file in an archive, which leads out of no folder."""
    return path.parts[:1] == ("runs",) and len(path.parts) > 2 and ".." not in path.parts


def seed_of(run_name: str) -> str:
    """The seed in the name of a trial's folder, as in smallest-kappa-seed17."""
    return run_name.rpartition("-seed")[2]
