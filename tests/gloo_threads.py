"""Process groups of torch whose ranks are threads of one process, for what needs a group and no training."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any

import torch

from tests.patience import patience


def with_groups(world_size: int, work: Callable[[Any], Any]) -> list[Any]:
    """Return what `work(group)` returns on each rank, all at once; an error of one is raised."""
    store = torch.distributed.HashStore()

    def be_rank(rank: int) -> Any:
        group = torch.distributed.ProcessGroupGloo(store, rank, world_size, timedelta(seconds=patience(20)))
        return work(group)

    with ThreadPoolExecutor(world_size) as pool:
        return [future.result(patience(30)) for future in [pool.submit(be_rank, rank) for rank in range(world_size)]]
