"""A model's names for the tensors of its files: transformers renames, fuses and ties them on loading."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from kappaspeech.expert_names import expert_name, split_expert


def model_names(llm: Any, stored: Iterable[str]) -> dict[str, str]:
    """The parameter of `llm` that each of these stored tensors is loaded into, by transformers' own conversion.

    A parameter of several names goes by its first, as `named_parameters` yields it. A tensor that is fused with others, or not
    loaded at all, is left out. `llm` may lie on torch's meta device.
    """
    from transformers.core_model_loading import dot_natural_key, rename_source_key

    renamings, converters = read_conversion(llm)
    parameters = dict(llm.named_parameters(remove_duplicate=False))
    first = {id(parameter): name for name, parameter in llm.named_parameters()}
    found = {}
    for name in sorted(stored, key=dot_natural_key):
        renamed, converter = rename_source_key(name, renamings, converters, llm.base_model_prefix, parameters)
        if converter is None and renamed in parameters:
            found[name] = first[id(parameters[renamed])]
    return found


def read_conversion(llm: Any) -> tuple[list[Any], list[Any]]:
    """transformers' renamings and converters of an LLM's files. They remember the tensors that they meet, so each call makes its
    own."""
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightConverter, WeightRenaming

    mapping = get_model_conversion_mapping(llm)
    return (
        [entry for entry in mapping if isinstance(entry, WeightRenaming)],
        [entry for entry in mapping if isinstance(entry, WeightConverter)],
    )


def rename_shapes(llm: Any, shapes: Mapping[str, Sequence[int]]) -> dict[str, Sequence[int]]:
    """`shapes` of stored tensors by the names that `llm` has for them; a name that it knows, or knows nothing of, stays.

    One expert of a tensor that is stored fused goes by the tensor's name; one that is stored apart keeps its own.
    """
    known = {name for name, _ in llm.named_parameters(remove_duplicate=False)}
    tensors = {name: split_expert(name) for name in shapes}
    if known.issuperset(tensor for tensor, _ in tensors.values()):
        return dict(shapes)
    names = model_names(llm, {tensor for tensor, _ in tensors.values()})
    renamed = {}
    for name, (tensor, expert) in tensors.items():
        own = tensor if tensor in known else names.get(tensor, tensor)
        renamed[own if expert is None else expert_name(own, expert)] = shapes[name]
    return renamed
