"""A model's names for the tensors of its files: transformers renames, fuses and ties them on loading."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any


def model_names(llm: Any, stored: Iterable[str]) -> dict[str, str]:
    """The parameter of `llm` that each of these stored tensors is loaded into, by transformers' own conversion.

    A parameter of several names goes by its first, as `named_parameters` yields it. A tensor that is fused with others, or not
    loaded at all, is left out. `llm` may lie on torch's meta device.
    """
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightConverter, WeightRenaming, dot_natural_key, rename_source_key

    # they remember the tensors that they have met, so each call has its own
    mapping = get_model_conversion_mapping(llm)
    renamings = [entry for entry in mapping if isinstance(entry, WeightRenaming)]
    converters = [entry for entry in mapping if isinstance(entry, WeightConverter)]
    parameters = dict(llm.named_parameters(remove_duplicate=False))
    first = {id(parameter): name for name, parameter in llm.named_parameters()}
    found = {}
    for name in sorted(stored, key=dot_natural_key):
        renamed, converter = rename_source_key(name, renamings, converters, llm.base_model_prefix, parameters)
        if converter is None and renamed in parameters:
            found[name] = first[id(parameters[renamed])]
    return found


def rename_shapes(llm: Any, shapes: Mapping[str, Sequence[int]]) -> dict[str, Sequence[int]]:
    """`shapes` of stored tensors by the names that `llm` has for them; a name that it knows, or knows nothing of, stays."""
    known = {name for name, _ in llm.named_parameters(remove_duplicate=False)}
    if known.issuperset(shapes):
        return dict(shapes)
    names = model_names(llm, shapes)
    return {name if name in known else names.get(name, name): shape for name, shape in shapes.items()}
