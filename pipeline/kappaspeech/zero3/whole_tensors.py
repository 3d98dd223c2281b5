"""Trained tensors that come whole, from a checkpoint, to be cut for the ranks."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


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


def gather_whole(parameter: Any) -> Tensor:
    """A parameter's float32 master weights, whole, on its device. A collective."""
    from deepspeed.utils import safe_get_full_fp32_param

    return safe_get_full_fp32_param(parameter).detach()  # type: ignore[no-any-return]


def put_whole(parameter: Any, value: Tensor, *, rank: int) -> None:
    """Put a whole tensor, alike on all ranks, in the place of a parameter's weights. A collective."""
    import deepspeed

    spread(parameter, None, value, rank=rank)
    # the 16-bit partition is refreshed by a step only, and the next forward reads it before one
    with deepspeed.zero.GatheredParameters([parameter], modifier_rank=0):
        if rank == 0:
            parameter.data.copy_(value)
    # hpZ's copy, which forward passes read first
    parameter.ds_secondary_tensor = None
