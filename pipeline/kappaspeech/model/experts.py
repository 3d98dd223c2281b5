"""Single experts that train while the others of their fused tensor don't.

The trained experts of a tensor are a parameter of their own, stacked, with its own gradient, optimizer state and partition. The
tensor itself is frozen. Before its module computes, they are put into their places in it, without a copy of the others, and the
module sees a tensor whose gradient reaches them alone.

E experts · K trained experts · O rows · P trained rows · I columns
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, wraps
from typing import Any

import torch
from torch import Tensor, nn

from kappaspeech.model.expert_places import ExpertPlace

_STACKS = "trained_experts"


@dataclass(frozen=True)
class ExpertStack:
    """The trained `experts` of a module's fused tensor `fused`, rows `start` to `stop` of each, stacked in the parameter `stack`.

    `names` are the experts' own, as the selection has them.
    """

    fused: str
    stack: str
    start: int
    stop: int
    experts: tuple[int, ...]
    names: tuple[str, ...]

    @property
    def index(self) -> str:
        """The name of the module's buffer of `experts`."""
        return f"{self.stack}_index"


def train_experts(llm: nn.Module, places: Mapping[str, ExpertPlace]) -> None:
    """Let the matrices at these places train, and nothing else of their tensors."""
    members: dict[tuple[str, int, int], list[tuple[int, str]]] = {}
    for name, place in places.items():
        members.setdefault((place.parameter, place.start, place.stop), []).append((place.expert, name))
    stacks: dict[str, list[ExpertStack]] = {}
    for (parameter, start, stop), found in sorted(members.items()):
        path, _, fused = parameter.rpartition(".")
        experts, names = zip(*sorted(found), strict=True)
        stacks.setdefault(path, []).append(ExpertStack(fused, f"{fused}_trained_{start}_{stop}", start, stop, experts, names))
    for path, of_module in stacks.items():
        module = llm.get_submodule(path)
        for stack in of_module:
            fused_EOI = module.get_parameter(stack.fused).requires_grad_(False).data
            index_K = torch.tensor(stack.experts, device=fused_EOI.device)
            stack_KPI = fused_EOI[:, stack.start : stack.stop].index_select(0, index_K)
            module.register_parameter(stack.stack, nn.Parameter(stack_KPI))
            module.register_buffer(stack.index, index_K, persistent=False)
        setattr(module, _STACKS, tuple(of_module))
        module.forward = _put_before(module, module.forward)


def computes_with(module: nn.Module, fused: str) -> bool:
    """Return whether the forward of `module` reads its tensor `fused` itself, and no other module does it in its place."""
    return _reads(type(module).forward, fused)


@cache
def _reads(forward: Callable[..., Any], fused: str) -> bool:
    try:
        # transformers' choice of an implementation wraps the family's own
        source = inspect.getsource(inspect.unwrap(forward))
    except (OSError, TypeError):
        return False
    return re.search(rf"\bself\.{re.escape(fused)}\b", source) is not None


def list_stacks(model: nn.Module) -> dict[str, list[ExpertStack]]:
    """The stacks of trained experts by the names of the frozen tensors that they belong to, as `model` has them."""
    found: dict[str, list[ExpertStack]] = {}
    for path, module in model.named_modules():
        for stack in getattr(module, _STACKS, ()):
            found.setdefault(f"{path}.{stack.fused}", []).append(stack)
    return found


def stacked_parameters(model: nn.Module) -> Iterator[tuple[Any, Any]]:
    """Each stack of trained experts, after the frozen tensor that it belongs to."""
    for fused, stacks in list_stacks(model).items():
        for stack in stacks:
            yield model.get_parameter(fused), model.get_parameter(f"{fused.rpartition('.')[0]}.{stack.stack}")


def without_trained(fused_EOI: Tensor, stacks: Sequence[ExpertStack]) -> Tensor:
    """A fused tensor with zeros in place of its trained experts: what must stay as it is. Without `stacks` the tensor itself."""
    if not stacks:
        return fused_EOI
    rest_EOI = fused_EOI.detach().clone()
    for stack in stacks:
        rest_EOI[list(stack.experts), stack.start : stack.stop] = 0
    return rest_EOI


def put_experts(fused_EOI: Tensor, trained: Mapping[ExpertPlace, Tensor]) -> Tensor:
    """A copy of a fused tensor with these matrices in their places."""
    merged_EOI = fused_EOI.detach().clone()
    for place, matrix in trained.items():
        place.of(merged_EOI).copy_(matrix)
    return merged_EOI


def _put_before(module: nn.Module, forward: Callable[..., Any]) -> Callable[..., Any]:
    """`forward`, which meets the trained experts in its fused tensors.

    It is wrapped, and not hooked: DeepSpeed gathers a module's parameters in hooks of its own, which must have run.
    """
    by_fused: dict[str, list[ExpertStack]] = {}
    for stack in getattr(module, _STACKS):
        by_fused.setdefault(stack.fused, []).append(stack)

    @wraps(forward)
    def forward_with_experts(*args: Any, **kwargs: Any) -> Any:
        try:
            for fused, stacks in by_fused.items():
                parts = [part for s in stacks for part in (getattr(module, s.index), getattr(module, s.stack))]
                rows = [(s.start, s.stop) for s in stacks]
                # found before the parameter of this name, which nn.Module looks up last
                module.__dict__[fused] = _Put.apply(module.get_parameter(fused), rows, *parts)  # type: ignore[no-untyped-call]
            return forward(*args, **kwargs)
        finally:
            for fused in by_fused:
                module.__dict__.pop(fused, None)

    return forward_with_experts


class _Put(torch.autograd.Function):
    """Write stacks into their places in a frozen tensor, and pass its gradient there on to them."""

    @staticmethod
    def forward(ctx: Any, fused_EOI: Tensor, rows: Sequence[tuple[int, int]], *parts: Tensor) -> Tensor:
        """`parts` are indices (K,) and stacks (K, P, I) by turns, one of each for an entry of `rows`."""
        # nothing else reads these places: a partition of ZeRO-3's may hold them from before, as its own
        whole_EOI = fused_EOI.data
        indices, stacks = parts[::2], parts[1::2]
        for (start, stop), index_K, stack_KPI in zip(rows, indices, stacks, strict=True):
            whole_EOI[:, start:stop].index_copy_(0, index_K, stack_KPI.detach().to(whole_EOI.dtype))
        ctx.rows, ctx.indices, ctx.dtype = rows, indices, stacks[0].dtype
        return whole_EOI

    @staticmethod
    def backward(ctx: Any, gradient_EOI: Tensor) -> tuple[Tensor | None, ...]:
        gradients: list[Tensor | None] = []
        for (start, stop), index_K in zip(ctx.rows, ctx.indices, strict=True):
            gradients += [None, gradient_EOI[:, start:stop].index_select(0, index_K).to(ctx.dtype)]
        return (None, None, *gradients)
