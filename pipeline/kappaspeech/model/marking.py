"""The choice of the LLM's tensors that train: `requires_grad` by the configuration's mode and a selection's names."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, Protocol

from kappaspeech.errors import SelectionError
from kappaspeech.expert_names import split_expert
from kappaspeech.model.expert_places import find_places
from kappaspeech.model.freezing import check_tensors, unfreeze
from kappaspeech.model.lora import LoraShape, add_lora, linear_tensors
from kappaspeech.model.stored_names import rename_shapes


class Factors(Protocol):
    """`unfreeze.lora` of a configuration."""

    @property
    def rank(self) -> int: ...
    @property
    def alpha(self) -> float: ...
    @property
    def dropout(self) -> float: ...


class Unfreezing(Protocol):
    """The part of a configuration's `unfreeze` that is read here."""

    @property
    def mode(self) -> str: ...
    @property
    def lora(self) -> Factors | None: ...


class Selection(Protocol):
    """Tensors by name, with their shapes."""

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]: ...


def mark_trained(llm: Any, options: Unfreezing, selection: Selection | None, *, seed: int) -> LoraShape | None:
    """Set `requires_grad` in `llm` as `options.mode` says, adding LoRA's factors if it asks for them.

    Call it before DeepSpeed sees the model: DeepSpeed gives optimizer state to every tensor that isn't frozen by then.
    """
    # a scan knows a checkpoint's files alone
    shapes = rename_shapes(llm, selection.shapes) if selection else {}
    if options.mode == "all":
        llm.requires_grad_(True)
    elif options.lora is not None:
        _refuse_single_experts(find_places(llm, shapes))
        check_tensors(llm, shapes)
        wanted = LoraShape(options.lora.rank, options.lora.alpha, options.lora.dropout)
        return add_lora(llm, list(shapes) or linear_tensors(llm), wanted, seed=seed)
    else:
        unfreeze(llm, shapes)
    return None


def _refuse_single_experts(names: Collection[str]) -> None:
    if names:
        first = min(names)
        apart = split_expert(first)[1] is None
        raise SelectionError(
            f"LoRA adapts the experts of a fused tensor together, and the selection names {len(names)} single one(s) (first: "
            f"{first}). Train them whole (unfreeze.mode selection), or "
            + (
                "leave them out (--exclude '*.experts.*')."
                if apart
                else "select again with --experts together, which takes all experts of a tensor as one."
            )
        )
