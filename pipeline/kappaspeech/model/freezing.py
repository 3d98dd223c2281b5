"""The parameters that train: the adaptor, and of the LLM exactly the tensors that a selection names."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence

from torch import nn

from kappaspeech.errors import SelectionError
from kappaspeech.expert_names import split_expert
from kappaspeech.model.expert_places import ExpertPlace, find_places
from kappaspeech.model.experts import computes_with, train_experts

_NUM_NAMED = 3
_SAVE_FUSED = (
    "Save the model with save_pretrained(FOLDER, save_original_format=False), give FOLDER as model.llm, and scan and select "
    "there."
)
_EXPERT_APART = re.compile(r"(.*\.experts)\.\d+\..*")


def unfreeze(llm: nn.Module, shapes: Mapping[str, Sequence[int]]) -> list[str]:
    """Set `requires_grad` on the parameters of `llm` that `shapes` names and on no other; return their names, sorted.

    They are matched by exact name and shape. A name may be any of a tied parameter's names. Raises `SelectionError` for a name
    that the model lacks or a shape that differs. Shapes are those of the whole tensor, also if ZeRO-3 has partitioned it. Single
    experts of a fused tensor become a parameter of their own, of that name and `_trained_` and their rows.
    """
    places = check_selected(llm, shapes)
    parameters = dict(llm.named_parameters(remove_duplicate=False))
    llm.requires_grad_(False)
    for name in shapes:
        if name not in places:
            parameters[name].requires_grad_(True)
    train_experts(llm, places)
    return [name for name, parameter in llm.named_parameters() if parameter.requires_grad]


def check_selected(llm: nn.Module, shapes: Mapping[str, Sequence[int]]) -> dict[str, ExpertPlace]:
    """The places of the single experts among `shapes`; raise `SelectionError` unless each of them is one, or a whole tensor."""
    places = find_places(llm, shapes)
    check_tensors(llm, {name: shape for name, shape in shapes.items() if name not in places})
    taken: dict[tuple[str, int], list[tuple[ExpertPlace, str]]] = {}
    for name, place in places.items():
        there = taken.setdefault((place.parameter, place.expert), [])
        twice = [other for before, other in there if before.start < place.stop and place.start < before.stop]
        twice += [place.parameter] if place.parameter in shapes else []
        if twice:
            raise SelectionError(
                f"The selection names {name} and also {twice[0]}, where it lies. Make it again with one of them."
            )
        there.append((place, name))
        path, _, fused = place.parameter.rpartition(".")
        if not computes_with(llm.get_submodule(path), fused):
            raise SelectionError(
                f"{type(llm).__name__} computes with {place.parameter} in a way of its own, so {name} can't train without the "
                "other experts. Select with --experts together, or without it (--exclude)."
            )
    return places


def check_tensors(llm: nn.Module, shapes: Mapping[str, Sequence[int]]) -> None:
    """Raise `SelectionError` unless `llm` has each named tensor in its shape."""
    parameters = dict(llm.named_parameters(remove_duplicate=False))
    missing = sorted(set(shapes) - set(parameters))
    if missing:
        raise SelectionError(
            f"The selection names {len(missing)} tensor(s) that this model lacks (first: {', '.join(missing[:_NUM_NAMED])}). "
            + _explain_missing(missing[0], parameters)
        )
    for name, shape in sorted(shapes.items()):
        actual = tuple(getattr(parameters[name], "ds_shape", parameters[name].shape))
        if not parameters[name].is_floating_point():
            raise SelectionError(
                f"{name} is quantised in this model: codes ({parameters[name].dtype}) can't be trained. Train the unquantised "
                "model, or give the selection to another tool (kappaspeech select --export peft)."
            )
        if actual != tuple(shape):
            raise SelectionError(
                f"{name} has shape {actual} in this model but {tuple(shape)} in the selection. "
                "It was made from another model: scan this model's checkpoint and select again."
            )


def check_tensors_are_stored(llm: nn.Module, stored: Collection[str]) -> None:
    """Raise `SelectionError` if `llm` has a parameter under a name that its checkpoint lacks: fused when it was loaded."""
    names = set(stored)
    absent = [name for name, _ in llm.named_parameters() if name not in names]
    if absent:
        raise SelectionError(
            f"{len(absent)} tensor(s) of this model aren't in its checkpoint under their names (first: {absent[0]}): "
            f"transformers makes them of others on loading. {_SAVE_FUSED}"
        )


def _explain_missing(name: str, parameters: Mapping[str, nn.Parameter]) -> str:
    """The reason why a model lacks a tensor, and the remedy."""
    tensor, expert = split_expert(name)
    if expert is not None and tensor in parameters:
        shape = tuple(getattr(parameters[tensor], "ds_shape", parameters[tensor].shape))
        if len(shape) == 2:
            return (
                f"{tensor} has all of its experts in one matrix {shape} here, so one can't train without the others. Select with "
                "--experts together, or without it (--exclude)."
            )
        return (
            f"{tensor} has shape {shape} here, and {name} is none of its experts: scan this model's checkpoint and select again."
        )
    apart = _EXPERT_APART.fullmatch(name)
    fused = [other for other in parameters if apart and other.startswith(f"{apart[1]}.") and parameters[other].dim() == 3]
    if fused:
        return (
            f"Its checkpoint stores each expert apart, and transformers fuses them on loading ({fused[0]}) in a way of its "
            f"own, so this one's place isn't known. {_SAVE_FUSED}"
        )
    return (
        "If it was made from another model, scan this model's checkpoint and select again. If it was made from this one, then "
        f"transformers makes no parameter of {name} when it loads its files: select again with --exclude '{name}'."
    )
