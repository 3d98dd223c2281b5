"""Which parameters train: the adaptor, and of the LLM exactly the tensors that a selection names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import nn

from pipeline.errors import SelectionError

_NUM_NAMED = 3


def unfreeze(llm: nn.Module, shapes: Mapping[str, Sequence[int]]) -> list[str]:
    """Set `requires_grad` on the parameters of `llm` that `shapes` names and on no other; return their names, sorted.

    By exact name and shape. A name may be any of a tied parameter's names. Raises `SelectionError` for a name that the model
    lacks or a shape that differs. Shapes are those of the whole tensor, also where ZeRO-3 has partitioned it.
    """
    parameters = dict(llm.named_parameters(remove_duplicate=False))
    missing = sorted(set(shapes) - set(parameters))
    if missing:
        raise SelectionError(
            f"The selection names {len(missing)} tensor(s) that this model lacks (first: {', '.join(missing[:_NUM_NAMED])}). "
            "It was made from another model: scan this model's checkpoint and select again."
        )
    for name, shape in sorted(shapes.items()):
        actual = tuple(getattr(parameters[name], "ds_shape", parameters[name].shape))
        if actual != tuple(shape):
            raise SelectionError(
                f"{name} has shape {actual} in this model but {tuple(shape)} in the selection. "
                "It was made from another model: scan this model's checkpoint and select again."
            )
    llm.requires_grad_(False)
    for name in shapes:
        parameters[name].requires_grad_(True)
    return [name for name, parameter in llm.named_parameters() if parameter.requires_grad]
