"""DeepSpeed 0.19's exchanges on processors, done by this project's own. The bound in setup.py holds its version.

Two functions of ZeRO-3 are replaced by others of the same contract: the reduce-scatter of gradients, and the gathering of many
parameters at once, which each step ends with. What lies on a GPU goes to DeepSpeed's own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from kappaspeech.ranks.part_exchange import PartExchange


class ProcessorExchange:
    """Takes the place of DeepSpeed's `reduce_scatter_coalesced` and `_allgather_params_coalesced` until it is closed."""

    def __init__(self) -> None:
        from deepspeed.runtime.comm.coalesced_collectives import reduce_scatter_coalesced
        from deepspeed.runtime.zero import stage3
        from deepspeed.runtime.zero.partition_parameters import Init

        self._stage3: Any = stage3
        self._init: Any = Init
        self._own_average = reduce_scatter_coalesced
        self._own_gather = Init._allgather_params_coalesced
        # by the process group, which hashes by identity: experts may have one of their own
        self._of_group: dict[Any, PartExchange] = {}
        stage3.reduce_scatter_coalesced = self._average
        # a function and not a method of this object, for it is one of `Init`'s
        Init._allgather_params_coalesced = lambda init, *arguments, **named: self._gather(init, *arguments, **named)

    def _average(self, tensors: Sequence[Tensor], group: Any = None) -> list[Tensor]:
        if group is None or any(tensor.device.type != "cpu" for tensor in tensors):
            return self._own_average(tensors, group)  # type: ignore[no-any-return]
        return self._exchange(group).average_parts(tensors)

    def _gather(self, init: Any, parameters: Sequence[Any], hierarchy: int = 0, quantize: bool = False) -> None:
        """Make all of `parameters`, of one process group, whole. DeepSpeed's own gathers each by a message."""
        parts = [parameter.ds_tensor for parameter in parameters]
        group = init.get_partition_dp_group(parameters[0]) if parameters else None
        is_here = init.local_device.type == "cpu" and all(part.device.type == "cpu" for part in parts)
        # of one rank DeepSpeed's own copies nothing
        if quantize or not is_here or group is None or group.size() == 1:
            self._own_gather(init, parameters, hierarchy, quantize)
            return
        wholes = [part.new_empty(part.numel() * group.size()) for part in parts]
        self._exchange(group).gather_parts([part.view(-1) for part in parts], wholes)
        for parameter, whole in zip(parameters, wholes, strict=True):
            # the last parts are padded
            parameter.data = whole[: parameter.ds_numel].view(parameter.ds_shape)

    def _exchange(self, group: Any) -> PartExchange:
        if group not in self._of_group:
            self._of_group[group] = PartExchange(group)
        return self._of_group[group]

    def close(self) -> None:
        """Give DeepSpeed its own back, and the memory free."""
        self._stage3.reduce_scatter_coalesced = self._own_average
        self._init._allgather_params_coalesced = self._own_gather
        self._of_group.clear()
