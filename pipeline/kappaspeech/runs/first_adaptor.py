"""The adaptor that another run trained, for one that begins with it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from kappaspeech.artefacts import digest_json, read_json
from kappaspeech.errors import CheckpointError
from kappaspeech.model.adaptor import Adaptor
from kappaspeech.model.prefixes import ADAPTOR_PREFIX
from kappaspeech.model.tensor_digests import digest_tensor
from kappaspeech.runs.checkpoints import find_weights, list_checkpoints
from kappaspeech.runs.contents import ADAPTOR_FILE, CHECKPOINTS_FOLDER, RECORD_FILE, SPEECH_FILE

# the options that trained weights hang on, shown by their shapes or not; the scale of the embeddings is each LLM's own
_KEPT = ("encoder_width", "llm_width", "width", "num_heads", "stacking")


@dataclass(frozen=True)
class AdaptorOrigin:
    """The file that an adaptor was read from, and a digest of its tensors as the file holds them, as 64 hex digits."""

    file: str
    digest: str

    @staticmethod
    def from_json(value: Any) -> AdaptorOrigin | None:
        """The origin that a run's record tells of; None if it tells of none."""
        match value:
            case {"file": str(file), "digest": str(digest)}:
                return AdaptorOrigin(file, digest)
        return None

    def to_json(self) -> dict[str, str]:
        """The file and the digest, for a run's record."""
        return asdict(self)


@dataclass(frozen=True)
class FirstAdaptor:
    """An adaptor's tensors by their names in `Adaptor`, and the options that they were trained with; `file` holds them."""

    file: Path
    options: Mapping[str, Any]
    tensors: Mapping[str, Tensor]

    @property
    def origin(self) -> AdaptorOrigin:
        """The file of these tensors, and their digest."""
        return AdaptorOrigin(str(self.file), digest_json({name: digest_tensor(tensor) for name, tensor in self.tensors.items()}))

    def put_into(self, adaptor: Adaptor) -> None:
        """Give `adaptor` these weights, rounded to its dtype. Raises `CheckpointError` if they don't fit it."""
        wanted = asdict(adaptor.shape)
        others = [
            f"{name} {self.options.get(name)}, not {wanted[name]}" for name in _KEPT if self.options.get(name) != wanted[name]
        ]
        shapes = {name: tensor.shape for name, tensor in self.tensors.items()}
        if not others and shapes != {name: tensor.shape for name, tensor in adaptor.state_dict().items()}:
            others = ["other tensors than this version's"]
        if not others and not all(bool(torch.isfinite(tensor).all()) for tensor in self.tensors.values()):
            others = ["weights that aren't finite"]
        if others:
            raise CheckpointError(
                f"model.adaptor.initial: the adaptor in {self.file} has {'; '.join(others)}. Give this run the models and the "
                "model.adaptor of that one, or name another adaptor."
            )
        adaptor.load_state_dict(dict(self.tensors))


def read_first_adaptor(folder: Path) -> FirstAdaptor:
    """The adaptor of a run's last checkpoint, or of an export that has it as a file of its own.

    Raises `CheckpointError`, and `InputError` for a folder whose JSON can't be read.
    """
    if (folder / RECORD_FILE).exists():
        checkpoints = list_checkpoints(folder / CHECKPOINTS_FOLDER)
        if not checkpoints:
            raise CheckpointError(f"model.adaptor.initial: {folder} has no checkpoint yet. Let its training reach one.")
        file, prefix = find_weights(checkpoints[-1]), ADAPTOR_PREFIX
        options = read_json(folder / RECORD_FILE, schema_version=1).get("adaptor")
    elif (folder / ADAPTOR_FILE).exists():
        file, prefix = folder / ADAPTOR_FILE, ""
        options = read_json(folder / SPEECH_FILE, schema_version=1).get("adaptor")
    else:
        raise CheckpointError(
            f"model.adaptor.initial: {folder} is neither a run's folder ({RECORD_FILE}) nor an export with {ADAPTOR_FILE}. Give "
            "the folder of a run, or what `kappaspeech export RUN FOLDER --only adaptor` wrote."
        )
    try:
        # beside the adaptor a checkpoint may hold many times as much of the LLM
        with safe_open(file, framework="pt") as stored:
            names = [name for name in stored.keys() if name.startswith(prefix)]  # noqa: SIM118 - no mapping
            of_adaptor = {name.removeprefix(prefix): stored.get_tensor(name) for name in names}
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"model.adaptor.initial: {file} can't be read: {error}. Export that adaptor again.") from error
    return FirstAdaptor(file, options if isinstance(options, dict) else {}, of_adaptor)
