"""Counts of what a step asks of the other ranks and of its device, taken where PyTorch dispatches it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Self
from unittest.mock import patch

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from kappaspeech.ranks.letterboxes import SharedLetterboxes
from kappaspeech.ranks.part_exchange import PartExchange
from kappaspeech.zero3.engine import TrainingEngine

# a number, or a length that the data decide, is read back: a device is waited for
_READS = ("aten::_local_scalar_dense", "aten::nonzero", "aten::_unique2", "aten::masked_select")


class StepCounter(TorchDispatchMode):
    """`gathered`: elements that all-gathers bring, and `shared` those that come through memory that ranks share; `collectives`
    and `reads` by the names of their operations.

    `received`: elements in float32 that come from other ranks by gathers of any kind; messages between ranks are bytes.
    """

    def __init__(self) -> None:
        super().__init__()
        self.gathered = self.shared = self.received = 0
        self.collectives: Counter[str] = Counter()
        self.reads: Counter[str] = Counter()

        gather = PartExchange.gather_parts

        def count(exchange: PartExchange, parts: Sequence[Tensor], wholes: Sequence[Tensor]) -> None:
            if isinstance(exchange._boxes, SharedLetterboxes):
                self.shared += sum(len(whole) for whole in wholes)
                pairs = zip(parts, wholes, strict=True)
                self.received += sum(len(whole) - len(part) for part, whole in pairs if whole.dtype == torch.float32)
            gather(exchange, parts, wholes)

        self._counting = patch.object(PartExchange, "gather_parts", count)

    def __enter__(self) -> Self:
        self._counting.start()
        super().__enter__()
        return self

    def __exit__(self, *raised: Any) -> None:
        super().__exit__(*raised)
        self._counting.stop()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name
        if name.startswith("c10d::"):
            self.collectives[name] += 1
            if name == "c10d::_allgather_base_":
                self.gathered += args[0].numel()
                if args[0].dtype == torch.float32:
                    self.received += args[0].numel() - args[1].numel()
            elif name == "c10d::gather_":
                # lists of what each rank sends, on the one that has it all
                (own,) = args[1]
                self.received += sum(tensor.numel() for tensors in args[0] for tensor in tensors) - own.numel() * len(args[0])
        elif name in _READS:
            self.reads[name] += 1
        return func(*args, **(kwargs or {}))


@contextmanager
def counting_late_fetches(engine: TrainingEngine) -> Iterator[Counter[str]]:
    """Elements that a module found partitioned when its turn came, by the module's class."""
    from deepspeed.runtime.zero.partition_parameters import ZeroParamStatus

    coordinator = engine._engine.optimizer.parameter_offload.get_param_coordinator()
    late: Counter[str] = Counter()
    fetch = coordinator._fetch_sub_module_impl

    def count(module: Any, forward: bool, is_leaf: bool) -> None:
        for parameter in module.parameters(recurse=is_leaf):
            if parameter.ds_status == ZeroParamStatus.NOT_AVAILABLE:
                late[type(module).__name__] += parameter.ds_numel
        fetch(module, forward, is_leaf)

    coordinator._fetch_sub_module_impl = count
    try:
        yield late
    finally:
        del coordinator._fetch_sub_module_impl
