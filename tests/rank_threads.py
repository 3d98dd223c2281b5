"""Ranks as threads of one process, for what needs several and no training: pipes connect them, as they do a scan's workers."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Any
from unittest.mock import patch

from kappaspeech.ranks.pipe_cluster import HUB_VARIABLE, Hub, PipeCluster
from kappaspeech.ranks.rendezvous import Launch
from tests.patience import patience


class RankThreads:
    """A context in which clusters can be connected; they are closed with it."""

    def __enter__(self) -> RankThreads:
        self._clusters: list[PipeCluster] = []
        return self

    def connect(self, world_size: int) -> list[PipeCluster]:
        """Another cluster, each rank's end of it."""
        hub = Hub(world_size)
        ends = []
        for rank in range(world_size):
            # what a process would inherit
            own = [str(os.dup(number)) for number in hub.file_descriptors(rank)]
            assert hub.environment(rank).keys() == {HUB_VARIABLE}
            with patch.dict(os.environ, {HUB_VARIABLE: ",".join(own)}):
                ends.append(PipeCluster(Launch(rank, world_size, rank, "pipes")))
        hub.close_far_ends()
        self._clusters += ends
        return ends

    def __exit__(self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None) -> None:
        for cluster in self._clusters:
            cluster.close()


def together(clusters: Sequence[PipeCluster], work: Callable[[PipeCluster], Any]) -> list[Any]:
    """`work(cluster)` of each rank at once, its error in place of what it returns."""
    with ThreadPoolExecutor(len(clusters)) as pool:
        started = [pool.submit(work, cluster) for cluster in clusters]
        errors = [future.exception(patience(20)) for future in started]
        return [error or future.result() for error, future in zip(errors, started, strict=True)]
