"""The tensors to train, and their file."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from kappaspeech.artefacts import read_json, write_json
from kappaspeech.errors import SelectionError
from kappaspeech.outside import explained

SCHEMA_VERSION = 1


@dataclass(frozen=True)
class SelectedTensor:
    """One tensor to train, by its parameter's name in the model."""

    name: str
    shape: tuple[int, ...]
    kappa: float
    aliases: tuple[str, ...] = ()


@dataclass(frozen=True)
class TensorSelection:
    """The tensors to train, in the order that chose them, and the rule and inputs that they follow from."""

    rule: str
    model: str
    checkpoint_digest: str
    ranking_digest: str
    tensors: tuple[SelectedTensor, ...]
    gguf_architecture: str | None = None

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(tensor.name for tensor in self.tensors)

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {tensor.name: tensor.shape for tensor in self.tensors}

    @property
    def num_parameters(self) -> int:
        """Scalars in all selected tensors; tied storage counts once."""
        return sum(math.prod(tensor.shape) for tensor in self.tensors)

    def write(self, path: Path) -> None:
        """Write `selection.json`, atomically."""
        write_json(
            path,
            {
                "schema_version": SCHEMA_VERSION,
                "rule": self.rule,
                "model": self.model,
                "checkpoint_digest": self.checkpoint_digest,
                "ranking_digest": self.ranking_digest,
                "num_parameters": self.num_parameters,
                "tensors": [
                    {
                        "name": tensor.name,
                        "shape": list(tensor.shape),
                        "kappa": tensor.kappa if math.isfinite(tensor.kappa) else None,
                        "aliases": list(tensor.aliases),
                    }
                    for tensor in self.tensors
                ],
                **({"gguf_architecture": self.gguf_architecture} if self.gguf_architecture else {}),
            },
        )

    @staticmethod
    def read(path: Path) -> TensorSelection:
        """Read a `selection.json`. Raises `InputError` if it is missing or torn, `SelectionError` if it makes no sense."""
        content = read_json(path, schema_version=SCHEMA_VERSION)
        with explained(f"{path} is no selection", "Make it again with `kappaspeech select`.", kind=SelectionError):
            file = _SelectionFile.model_validate(content)
        selection = TensorSelection(
            rule=file.rule,
            model=file.model,
            checkpoint_digest=file.checkpoint_digest,
            ranking_digest=file.ranking_digest,
            tensors=tuple(
                SelectedTensor(
                    entry.name, tuple(entry.shape), math.inf if entry.kappa is None else entry.kappa, tuple(entry.aliases)
                )
                for entry in file.tensors
            ),
            gguf_architecture=file.gguf_architecture,
        )
        if len(set(selection.names)) != len(selection.tensors):
            raise SelectionError(f"{path} names a tensor twice. Make it again with `kappaspeech select`.")
        if content.get("num_parameters") != selection.num_parameters:
            raise SelectionError(
                f"{path} says num_parameters {content.get('num_parameters')!r}, but its shapes make "
                f"{selection.num_parameters}. It was edited by hand or torn: make it again with `kappaspeech select`."
            )
        return selection


class _TensorEntry(BaseModel):
    model_config = ConfigDict(strict=True, allow_inf_nan=False)

    name: str
    shape: Annotated[list[Annotated[int, Field(ge=0, lt=2**48)]], Field(max_length=64)]
    kappa: Annotated[float, Field(ge=0)] | None
    aliases: list[str] = []


class _SelectionFile(BaseModel):
    model_config = ConfigDict(strict=True)

    rule: str
    model: str
    checkpoint_digest: str
    ranking_digest: str
    tensors: list[_TensorEntry]
    gguf_architecture: str | None = None
