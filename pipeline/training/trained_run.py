"""A finished run, or its export, opened for use: the whole model in one process."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from pipeline.artefacts import read_json
from pipeline.config import RunConfig
from pipeline.errors import CheckpointError, InputError
from pipeline.evaluation.transcribe import Transcriber
from pipeline.model.adaptor import AdaptorShape
from pipeline.model.encoder import load_encoder
from pipeline.model.llm import load_tokenizer
from pipeline.model.speech_llm import SpeechLLM
from pipeline.model.trained import load_trained_model
from pipeline.scan.checkpoint import open_checkpoint
from pipeline.speech.batches import make_prompt
from pipeline.training import checkpoint as checkpoints
from pipeline.training.run_folder import RunFolder

SPEECH_FILE = "speech.json"
ADAPTOR_FILE = "adaptor.safetensors"
SCHEMA_VERSION = 1
_DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}


@dataclass(frozen=True)
class SpeechParts:
    """All that a speech LLM needs beside its LLM's own folder; `speech.json` of an export."""

    encoder: str
    pad_to_30s: bool
    instruction: str
    dtype: str
    adaptor: AdaptorShape

    @property
    def torch_dtype(self) -> torch.dtype:
        return _DTYPES[self.dtype]

    def to_json(self) -> dict[str, Any]:
        return {"schema_version": SCHEMA_VERSION, **asdict(self)}


@dataclass(frozen=True)
class TrainedRun:
    """A run's configuration and one of its checkpoints."""

    path: Path
    config: RunConfig
    record: dict[str, Any]
    checkpoint: Path
    step: int
    train_seconds: float

    @property
    def parts(self) -> SpeechParts:
        return SpeechParts(
            encoder=self.config.model.encoder,
            pad_to_30s=self.config.model.pad_to_30s,
            instruction=self.config.model.instruction,
            dtype=str(self.record["dtype"]),
            adaptor=AdaptorShape(**self.record["adaptor"]),
        )

    def load_model(self) -> SpeechLLM:
        """The base model with what this checkpoint trained. Raises `CheckpointError`, also where the base has changed."""
        base = open_checkpoint(self.config.model.llm).digest
        if base != self.record["checkpoint_digest"]:
            raise CheckpointError(
                f"{self.config.model.llm} is checkpoint {base[:12]}…, but {self.path} was trained on "
                f"{str(self.record['checkpoint_digest'])[:12]}…. Put the base model back that it was trained on."
            )
        trained = checkpoints.read_trained(self.checkpoint)
        return load_trained_model(self.config.model.llm, self.parts.adaptor, trained, dtype=self.parts.torch_dtype)


def choose_device(local_rank: int) -> torch.device:
    """This rank's GPU where there is one, else the CPU."""
    return torch.device("cuda", local_rank) if torch.cuda.is_available() else torch.device("cpu")


def open_run(path: Path, *, step: int | None = None) -> TrainedRun:
    """A run folder at its last checkpoint, or at that of `step`. Raises `InputError` or `CheckpointError`."""
    folder = RunFolder(path)
    config, record = folder.read_config(), folder.read_record()
    found = checkpoints.list_checkpoints(folder.checkpoints)
    if not found:
        raise CheckpointError(f"{path} has no checkpoint yet. Let its training reach one.")
    states = {int(checkpoint.name.removeprefix("step-")): checkpoint for checkpoint in found}
    wanted = max(states) if step is None else step
    if wanted not in states:
        raise CheckpointError(f"{path} has no checkpoint of step {wanted}; it has {', '.join(map(str, sorted(states)))}.")
    state = checkpoints.read_state(states[wanted])
    return TrainedRun(path, config, record, states[wanted], wanted, float(state["train_seconds"]))


def open_transcriber(
    path: Path, *, device: torch.device, batch_size: int, max_new_tokens: int, step: int | None = None
) -> Transcriber:
    """What transcribes with a run folder's checkpoint (the last, or of `step`), or with an export.

    Raises `InputError` where `path` is neither.
    """
    if (path / SPEECH_FILE).exists():
        from safetensors.torch import load_file

        content = read_json(path / SPEECH_FILE, schema_version=SCHEMA_VERSION)
        parts = SpeechParts(
            **{key: content[key] for key in ("encoder", "pad_to_30s", "instruction", "dtype")},
            adaptor=AdaptorShape(**content["adaptor"]),
        )
        trained = {f"adaptor.{name}": tensor for name, tensor in load_file(path / ADAPTOR_FILE).items()}
        llm = str(path)
        model = load_trained_model(llm, parts.adaptor, trained, dtype=parts.torch_dtype)
    elif (path / "run.json").exists():
        run = open_run(path, step=step)
        parts, model, llm = run.parts, run.load_model(), run.config.model.llm
    else:
        raise InputError(f"{path} is neither a run folder (run.json) nor an export ({SPEECH_FILE}).")
    tokenizer = load_tokenizer(llm)
    return Transcriber(
        model.to(device),
        load_encoder(parts.encoder, pad_to_30s=parts.pad_to_30s).to(device),
        tokenizer,
        make_prompt(tokenizer, parts.instruction),
        batch_size=batch_size,
        max_new_tokens=max_new_tokens,
    )
