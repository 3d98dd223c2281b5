"""The parameters of a model that train, under the names that files have for them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from kappaspeech.model.experts import list_stacks
from kappaspeech.model.lora import public_names
from kappaspeech.model.prefixes import LLM_PREFIX


@dataclass(frozen=True)
class TrainedTensor:
    """A parameter that trains, and its name in files; of stacked experts, each one's name."""

    names: tuple[str, ...]
    parameter: Any
    is_stack: bool = False

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Whole shapes by name, also if ZeRO-3 has partitioned the parameter."""
        shape = tuple(getattr(self.parameter, "ds_shape", self.parameter.shape))
        return dict.fromkeys(self.names, shape[1:] if self.is_stack else shape)

    def split(self, whole: Tensor) -> Iterator[tuple[str, Tensor]]:
        """A whole tensor of the parameter's shape, under its names."""
        return zip(self.names, whole.unbind() if self.is_stack else (whole,), strict=True)

    def join(self, read: Callable[..., Tensor], *of: str) -> Tensor:
        """The whole tensor of those that `read` finds under each name, and `of` if given."""
        parts = [read(name, *of) for name in self.names]
        return torch.stack(parts) if self.is_stack else parts[0]


def list_trained(model: nn.Module) -> list[TrainedTensor]:
    """The tensors that train in `model`, in the order of its parameters."""
    stacked = {}
    for fused, stacks in list_stacks(model).items():
        prefix = LLM_PREFIX if fused.startswith(LLM_PREFIX) else ""
        for stack in stacks:
            stacked[f"{fused.rpartition('.')[0]}.{stack.stack}"] = tuple(prefix + name for name in stack.names)
    names = public_names(model)
    return [
        TrainedTensor(stacked.get(name, (names[name],)), parameter, name in stacked)
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
    ]
