"""Trained tensors whole: brought together from the ranks' partitions, or read from a checkpoint and cut for them."""

from __future__ import annotations

from collections.abc import Set
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


def collect_whole(parameter: Any, partition: Tensor, *, ranks: Set[int]) -> Tensor | None:
    """A copy of a tensor of this parameter's shape, of which each rank gives its partition, on these ranks. A collective.

    If it is one rank alone, no other receives anything. If there are several, all do, and have the tensor too.
    """
    partition = partition.detach().contiguous()
    world_size = torch.distributed.get_world_size()
    owner = next(iter(ranks)) if len(ranks) == 1 else None
    has_it = owner is None or owner == torch.distributed.get_rank()
    whole = partition.new_empty(world_size * partition.numel()) if has_it else None
    if world_size == 1:
        assert whole is not None
        whole.copy_(partition)
    elif owner is None:
        torch.distributed.all_gather_into_tensor(whole, partition)
    else:
        torch.distributed.gather(partition, None if whole is None else list(whole.chunk(world_size)), dst=owner)
    return None if whole is None else whole[: parameter.ds_numel].view(parameter.ds_shape)


def wait_until_written() -> None:
    """Return once the partitions hold what was put into them.

    DeepSpeed gathers them in a stream of its own, which doesn't wait for the one that writes here: the next pass could begin with
    what was there before.
    """
    if torch.cuda.is_available():
        torch.cuda.current_stream().synchronize()


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
    wait_until_written()
