"""A model cut into the ranks' partitions, so that no rank holds it whole."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

# parameters are partitioned in groups of about this size
_PARTITION_BYTES = 64 << 20


def cut_into_partitions(model: nn.Module, settings: Mapping[str, Any]) -> None:
    """Cut every parameter into the ranks' partitions, a few at a time, so that no rank holds the model whole.

    DeepSpeed first broadcasts each from rank 0. On a CPU that writes into the pages that the other ranks have mapped from the
    model's files, and such a page becomes memory of the rank's own until the last tensor of its file is gone. So the broadcast
    goes into a copy of each. On a GPU DeepSpeed makes that copy itself.
    """
    import deepspeed

    secondary = _secondary_group(settings)
    group: list[nn.Parameter] = []
    parameters = list(model.parameters())
    for index, parameter in enumerate(parameters):
        group.append(parameter)
        if index == len(parameters) - 1 or sum(p.nbytes for p in group) >= _PARTITION_BYTES:
            if not torch.cuda.is_available():
                for mapped in group:
                    mapped.data = mapped.data.clone()
            deepspeed.zero.Init(
                module=nn.ParameterList(group), config_dict_or_path=dict(settings), zero_param_parallel_group=secondary
            )
            group = []


def bring_buffers(model: nn.Module, device: torch.device) -> None:
    """Bring the tensors that a model holds beside its parameters to `device`.

    `zero.Init` of a model that exists already moves its parameters alone, and DeepSpeed's engine then takes the rest to be in its
    place too (engine.py: `_configure_distributed_model`). Beside a GPU it would stay on the host: each pass would copy rotary
    frequencies and wait for that, and routers' biases and the indices of trained experts would meet tensors of another device.
    """
    for module in model.modules():
        for name, buffer in module.named_buffers(recurse=False):
            module._buffers[name] = buffer.to(device)


def _secondary_group(settings: Mapping[str, Any]) -> Any:
    """The ranks that share hpZ's second copy of the weights; None without hpZ.

    `zero.Init` would make it at each call, and asserts that it hasn't been made before.
    """
    from deepspeed.utils import groups

    size = int(settings["zero_optimization"].get("zero_hpz_partition_size", 1))
    if size <= 1:
        return None
    if groups._get_zero_param_intra_parallel_group() is None:
        groups._create_zero_param_parallel_group(size)
    return groups._get_zero_param_intra_parallel_group()
