"""Trained tensors whole: a tensor's partitions brought together on the one rank that needs it, and cut again for all ranks."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def collect(parameter: Any, state: str | None, *, owner: int, rank: int, world_size: int) -> Tensor | None:
    """A parameter's float32 master weight, or a `state` of its optimizer, whole, on the device of rank `owner`; else None.

    Nothing that is computed later changes it. Where DeepSpeed's own gathering sends every partition to all ranks, this sends it
    to one. A collective.
    """
    from deepspeed.utils import safe_get_local_fp32_param, safe_get_local_optimizer_state

    found = safe_get_local_fp32_param(parameter) if state is None else safe_get_local_optimizer_state(parameter, state)
    # as long on all ranks: the last ones' are padded
    mine = found.detach()
    if world_size == 1:
        return _shape(mine.clone(), parameter)
    whole = torch.empty(world_size * len(mine), dtype=mine.dtype, device=mine.device) if rank == owner else None
    torch.distributed.gather(mine, None if whole is None else list(whole.chunk(world_size)), dst=owner)
    return None if whole is None else _shape(whole, parameter)


def spread(parameter: Any, state: str | None, value: Tensor, *, rank: int) -> None:
    """Put this rank's partition of a whole tensor in the place of a parameter's master weight, or of a `state` of its optimizer.

    DeepSpeed's own takes no tensor that the ranks can't share evenly.
    """
    from deepspeed.utils import safe_set_local_fp32_param, safe_set_local_optimizer_state

    num_elements = parameter.ds_tensor.numel()
    part = value.flatten()[rank * num_elements : (rank + 1) * num_elements]
    padded = torch.nn.functional.pad(part, (0, num_elements - len(part)))
    if state is None:
        safe_set_local_fp32_param(parameter, padded)
    else:
        safe_set_local_optimizer_state(parameter, padded, state)


def _shape(padded: Tensor, parameter: Any) -> Tensor:
    return padded[: parameter.ds_numel].view(parameter.ds_shape)
