"""DeepSpeed 0.19's gradients on processors, averaged by this project's own exchange. The bound in setup.py holds its version.

One function of ZeRO-3's module is replaced by another of the same contract; what lies on a GPU goes to DeepSpeed's own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from kappaspeech.ranks.averaging import Averaging


class GradientMeans:
    """Takes the place of DeepSpeed's `reduce_scatter_coalesced` until it is closed."""

    def __init__(self) -> None:
        from deepspeed.runtime.comm.coalesced_collectives import reduce_scatter_coalesced
        from deepspeed.runtime.zero import stage3

        self._stage3: Any = stage3
        self._own = reduce_scatter_coalesced
        # by the process group, which hashes by identity: experts may have one of their own
        self._of_group: dict[Any, Averaging] = {}
        stage3.reduce_scatter_coalesced = self._average

    def _average(self, tensors: Sequence[Tensor], group: Any = None) -> list[Tensor]:
        if group is None or any(tensor.device.type != "cpu" for tensor in tensors):
            return self._own(tensors, group)  # type: ignore[no-any-return]
        if group not in self._of_group:
            self._of_group[group] = Averaging(group)
        return self._of_group[group].average_parts(tensors)

    def close(self) -> None:
        """Give DeepSpeed its own back, and the memory free."""
        self._stage3.reduce_scatter_coalesced = self._own
        self._of_group.clear()
