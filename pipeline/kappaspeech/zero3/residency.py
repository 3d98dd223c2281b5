"""Weights that stay whole on a rank from step to step, by ZeRO-3's own means: DeepSpeed 0.19, the bound in setup.py.

It needs neither torch's hooks nor a fork: one method of one optimizer is replaced by another that calls the same coordinator.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from torch import nn


def keep_frozen_whole(optimizer: Any, model: nn.Module) -> None:
    """Let a step of DeepSpeed's ZeRO-3 `optimizer` cut into partitions only the parameters that it may change.

    Its `step` cuts every parameter, and then gathers again those that persist (stage3.py: `_partition_all_parameters`,
    `_post_step`), though a frozen one comes back unchanged. The frozen ones stay as they are. `empty_partition_cache`, which
    gives everything back, goes another way and still does.
    """
    coordinator = optimizer.parameter_offload.get_param_coordinator()

    def partition_what_changes() -> None:
        changing = []
        for parameter in model.parameters():
            if stays_whole(parameter):
                # as the coordinator does with those that it cuts: nothing computes between steps
                parameter.ds_active_sub_modules.clear()  # type: ignore[attr-defined]
            else:
                changing.append(parameter)
        coordinator.release_and_reset_all(_Parameters(changing))

    optimizer._partition_all_parameters = partition_what_changes


def persist_frozen(optimizer: Any, model: nn.Module) -> None:
    """Let every frozen parameter, however large, stay whole once it has been gathered. Call it before the first step."""
    for parameter in model.parameters():
        if not parameter.requires_grad and not parameter.ds_persist:  # type: ignore[attr-defined]
            parameter.ds_persist = True  # type: ignore[attr-defined]
            # after a step DeepSpeed gathers those of this list that a pass without a trace has given back
            optimizer.persistent_parameters.append(parameter)


def stays_whole(parameter: Any) -> bool:
    """Return whether a parameter that ZeRO-3 has partitioned is gathered once and for all."""
    return bool(parameter.ds_persist) and not parameter.requires_grad


class _Parameters:
    """Some parameters in the form in which the coordinator walks over a module's."""

    def __init__(self, parameters: Sequence[nn.Parameter]) -> None:
        self._parameters = parameters

    def named_parameters(self, recurse: bool = True) -> Iterator[tuple[str, nn.Parameter]]:
        """The parameters; the coordinator ignores their names."""
        return (("", parameter) for parameter in self._parameters) if recurse else iter(())

    def ds_external_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """The parameters that a module reads of others: none."""
        return iter(())
