"""The difference that a training made to its base, and all that a speech LLM needs beside its LLM's own folder."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from kappaspeech.errors import CheckpointError, InputError
from kappaspeech.model.adaptor import AdaptorShape
from kappaspeech.model.family import read_attentions
from kappaspeech.model.lora import LoraShape, is_factor, lora_from_record
from kappaspeech.model.precision import DTYPES
from kappaspeech.model.speech_llm import SpeechLLM
from kappaspeech.model.trained import load_trained_model
from kappaspeech.runs.checkpoints import TRAINED_FILE, read_trained
from kappaspeech.runs.contents import ADAPTOR_FILE, SPEECH_FILE
from kappaspeech.scan.checkpoint import Checkpoint, open_checkpoint
from kappaspeech.speech.prompt import SpeechPrompt, make_prompt
from kappaspeech.trained.arithmetic import UseArithmetic

__all__ = ["ADAPTOR_FILE", "SCHEMA_VERSION", "SPEECH_FILE", "TRAINED_FILE", "Difference", "SpeechParts"]

SCHEMA_VERSION = 1


@dataclass(frozen=True)
class SpeechParts:
    """All that a speech LLM needs beside its LLM's own folder; `speech.json` of an export."""

    encoder: str
    pad_to_30s: bool
    instruction: str
    chat_template: bool
    dtype: str
    adaptor: AdaptorShape
    encoder_dtype: str
    attention: str = "auto"
    prompt: dict[str, Any] | None = None
    num_beams: int = 1

    @property
    def torch_dtype(self) -> torch.dtype:
        return DTYPES[self.dtype]

    def make_prompt(self, tokenizer: Any) -> SpeechPrompt:
        """The prompt of the training; for a version that didn't record its prompt, the one that it made."""
        if self.prompt is not None:
            return SpeechPrompt.from_json(self.prompt)
        return make_prompt(tokenizer, self.instruction, chat=self.chat_template, as_before=True)

    def choose_attention(self, use: UseArithmetic, llm: str) -> str:
        """The attention with which the LLM at `llm` is loaded here."""
        return use.attention(self.dtype, kept=self.attention, takes=read_attentions(llm))

    def to_json(self) -> dict[str, Any]:
        """The content of `speech.json` of an export, which may be used from another working folder than the run's."""
        return {"schema_version": SCHEMA_VERSION, **asdict(self), "encoder": _portable(self.encoder)}

    @staticmethod
    def from_json(content: dict[str, Any], folder: Path) -> SpeechParts:
        """The parts that `to_json` returned, of the export in `folder`. Raises `InputError`."""
        with _explained(folder / SPEECH_FILE):
            plain = {key: content[key] for key in ("encoder", "pad_to_30s", "instruction", "dtype")}
            # versions before this one recorded the template alone, and left attention to the machine
            plain |= {"chat_template": content.get("chat_template", True), "attention": content.get("attention", "auto")}
            plain |= {"prompt": content.get("prompt"), "num_beams": content.get("num_beams", 1)}
            shape = AdaptorShape(**content["adaptor"])
            parts = SpeechParts(**plain, adaptor=shape, encoder_dtype=_read_encoder_dtype(content))
            for name in ("encoder", "instruction", "attention"):
                if not isinstance(getattr(parts, name), str):
                    raise TypeError(f"{name} is {getattr(parts, name)!r:.80}, which is no text")
            for name in ("dtype", "encoder_dtype"):
                if getattr(parts, name) not in DTYPES:
                    raise ValueError(f"{name} is {getattr(parts, name)!r:.80}; wanted is one of {', '.join(DTYPES)}")
            if not isinstance(parts.num_beams, int) or parts.num_beams < 1:
                raise ValueError(f"the number of beams is {parts.num_beams!r:.80}; wanted is one from 1 on")
            return parts


@dataclass(frozen=True)
class Difference:
    """The difference that a training made to its base: the file of trained tensors (names as in `SpeechLLM`), and their base."""

    where: Path
    parts: SpeechParts
    llm: str
    base_digest: str
    trained: Path
    lora: LoraShape | None = None

    @staticmethod
    def from_json(where: Path, content: dict[str, Any]) -> Difference:
        """The difference that lies in the folder `where`, with this `speech.json`. Raises `InputError`."""
        parts = SpeechParts.from_json(content, where)
        with _explained(where / SPEECH_FILE):
            llm, digest = (str(content["base"][name]) for name in ("llm", "checkpoint_digest"))
            return Difference(where, parts, llm, digest, where / TRAINED_FILE, lora_from_record(content.get("lora")))

    def base_json(self) -> dict[str, str]:
        return {"llm": _portable(self.llm), "checkpoint_digest": self.base_digest}

    def open_base(self) -> Checkpoint:
        """The base's tensors, unread. Raises `CheckpointError` if it isn't the one that was trained on."""
        try:
            base = open_checkpoint(self.llm)
        except CheckpointError as error:
            raise CheckpointError(
                f"The base model of {self.where} can't be opened: {error} If it has moved since the training, name its place "
                "with --base."
            ) from error
        if base.digest != self.base_digest:
            raise CheckpointError(
                f"{self.llm} is checkpoint {base.digest[:12]}…, but {self.where} was trained on {self.base_digest[:12]}…. "
                "Put the base model back that it was trained on, or name it with --base."
            )
        return base

    def load_model(self, use: UseArithmetic) -> SpeechLLM:
        """The base model with the trained tensors, as `use` says. Raises `CheckpointError`, also if the base has changed."""
        self.open_base()
        # masters are float32, and training computed with their rounding; a LoRA's product is rounded once, when it is merged
        trained = {
            name: tensor if is_factor(name) else tensor.to(self.parts.torch_dtype)
            for name, tensor in read_trained(self.trained).items()
        }
        return load_trained_model(
            self.llm,
            self.parts.adaptor,
            trained,
            dtype=use.dtype(self.parts.dtype),
            trained_in=self.parts.torch_dtype,
            lora=self.lora,
            attention=self.parts.choose_attention(use, self.llm),
        )


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    """Raise `InputError` for content of `path` that a newer version or another hand has written."""
    try:
        yield
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        told = f"{error} is missing" if isinstance(error, KeyError) else str(error)
        raise InputError(
            f"{path} can't be read: {told}. Export again with this release, or use the one that wrote it."
        ) from error


def _read_encoder_dtype(content: dict[str, Any]) -> str:
    """The encoder's dtype of an export: "auto", or nothing, comes from older versions, and meant float32 except on GPUs."""
    dtype = str(content.get("encoder_dtype", "auto"))
    return "float32" if dtype == "auto" else dtype


def _portable(name_or_path: str) -> str:
    """A name or path that also holds in another working folder, from which an export may be used."""
    path = Path(name_or_path)
    return str(path.resolve()) if path.exists() else name_or_path
