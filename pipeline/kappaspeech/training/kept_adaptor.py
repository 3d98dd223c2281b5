"""The adaptor that a run began with: read once, recorded, and not needed when the run resumes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from kappaspeech.config.run_config import RunConfig
from kappaspeech.errors import CheckpointError, InputError
from kappaspeech.ranks.agreement import agree
from kappaspeech.ranks.cluster import Cluster
from kappaspeech.runs.checkpoints import list_checkpoints, read_state
from kappaspeech.runs.contents import RECORD_FILE
from kappaspeech.runs.first_adaptor import AdaptorOrigin
from kappaspeech.runs.folder import RunFolder

# the name of the adaptor's digest among a checkpoint's fingerprints
FINGERPRINT = "initial adaptor"


@dataclass(frozen=True)
class KeptAdaptor:
    """The adaptor that a run with checkpoints began with: what model.adaptor.initial was, its origin, and the digest of all
    weights that the run began with."""

    initial: str
    origin: AdaptorOrigin
    initial_weights_digest: str


def find_kept_adaptor(*, cluster: Cluster, folder: RunFolder) -> KeptAdaptor | None:
    """Return what the record of a run that resumes says of its first adaptor; None for a new run, or one of random weights.

    Its checkpoints hold what became of the adaptor, so the run or export that it came from may be gone by now. A collective.
    """
    return agree(cluster, lambda: _find(folder) if cluster.rank == 0 else None)[0]


def _find(folder: RunFolder) -> KeptAdaptor | None:
    if not (folder.path / RECORD_FILE).exists() or not (checkpoints := list_checkpoints(folder.checkpoints)):
        return None
    record = folder.read_record()
    origin, start = AdaptorOrigin.from_json(record.get("initial_adaptor")), record.get("initial_weights_digest")
    if origin is None or not isinstance(start, str) or not any(_read_digest(path) == origin.digest for path in checkpoints):
        # in earlier versions a start that couldn't go on from the checkpoints wrote the record all the same
        return None
    initial = folder.read_config().model.adaptor.initial
    return None if initial is None else KeptAdaptor(initial, origin, start)


def _read_digest(checkpoint: Path) -> str | None:
    """The digest of the first adaptor by a checkpoint's own word; None if it is damaged, or of a version before there was one."""
    try:
        return str(read_state(checkpoint)["fingerprints"][FINGERPRINT])
    except (InputError, KeyError, TypeError):
        return None


def refuse_other_adaptor(kept: KeptAdaptor, config: RunConfig, origin: AdaptorOrigin | None) -> None:
    """Raise `CheckpointError` if a run that resumes asks for another first adaptor, `origin`, before its record says so too."""
    if origin is None or origin.digest != kept.origin.digest:
        raise CheckpointError(
            f"model.adaptor.initial is {config.model.adaptor.initial or 'null'}, another adaptor than {kept.initial}, which "
            f"{config.run_dir} was begun with: a run keeps it. Put that back, also if that folder is gone by now, or train into "
            "another run_dir."
        )
