"""The places of single experts in an LLM's fused tensors, by the names that a scan of its files has for them.

Checkpoints store experts apart (`experts.3.up_proj.weight`) or fused (`experts.gate_up_proj`, of which `[3]` is one), and
transformers computes with fused ones. E experts · O rows · I columns
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from kappaspeech.expert_names import split_expert
from kappaspeech.model.stored_names import read_conversion

_NUMBER = re.compile(r"\\\*")


@dataclass(frozen=True)
class ExpertPlace:
    """Rows `start` to `stop` of number `expert` of the fused tensor `parameter`."""

    parameter: str
    expert: int
    start: int
    stop: int

    def of(self, fused_EOI: Tensor) -> Tensor:
        """The matrix that lies here in a fused tensor: a view of it."""
        return fused_EOI[self.expert, self.start : self.stop]


def find_places(llm: Any, shapes: Mapping[str, Sequence[int]]) -> dict[str, ExpertPlace]:
    """The place of each name of `shapes` that means one expert's matrix, of this shape, in a fused tensor of `llm`.

    Other names are left out: whole tensors, names that the model lacks, and shapes that aren't its own. `llm` may lie on torch's
    meta device, or be partitioned by ZeRO-3.
    """
    fused = {
        name: tuple(getattr(parameter, "ds_shape", parameter.shape))
        for name, parameter in llm.named_parameters()
        if len(getattr(parameter, "ds_shape", parameter.shape)) == 3
    }
    places = {}
    known = {name for name, _ in llm.named_parameters(remove_duplicate=False)}
    apart = [name for name in shapes if name not in known and split_expert(name)[1] is None]
    stored = _find_stored(llm, apart, fused) if fused and apart else {}
    for name, shape in shapes.items():
        tensor, expert = split_expert(name)
        if expert is not None and tensor in fused:
            place = ExpertPlace(tensor, expert, 0, fused[tensor][1])
        elif name in stored:
            place = stored[name]
        else:
            continue
        num_experts, _, num_columns = fused[place.parameter]
        if place.expert < num_experts and tuple(shape) == (place.stop - place.start, num_columns):
            places[name] = place
    return places


def _find_stored(llm: Any, names: Sequence[str], fused: Mapping[str, tuple[int, ...]]) -> dict[str, ExpertPlace]:
    """The places of experts that the files store apart, by transformers' own conversion of these files.

    Only if the conversion stacks experts, and lays the rows of several modules one after the other.
    """
    from transformers.core_model_loading import Concatenate, MergeModulelist, rename_source_key

    renamings, converters = read_conversion(llm)
    by_pattern = {pattern: converter for converter in converters for pattern in converter.source_patterns}
    known = {name for name, _ in llm.named_parameters(remove_duplicate=False)}
    places = {}
    for name in names:
        target, pattern = rename_source_key(name, renamings, converters, llm.base_model_prefix, dict.fromkeys(known, 0))
        if pattern is None or target not in fused:
            continue
        converter = by_pattern[pattern]
        stacks = [(type(operation), operation.dim) for operation in converter.operations if hasattr(operation, "dim")]
        patterns = list(converter.source_patterns)
        expected = [(MergeModulelist, 0), (Concatenate, 1)][: 1 if len(patterns) == 1 else 2]
        before, _ = rename_source_key(name, renamings, [])
        number = re.search(_NUMBER.sub(r"(\\d+)", re.escape(pattern)), before)
        if stacks != expected or len(stacks) != len(converter.operations) or number is None:
            continue
        rows = fused[target][1] // len(patterns)
        first = patterns.index(pattern) * rows
        places[name] = ExpertPlace(target, int(number[1]), first, first + rows)
    return places
