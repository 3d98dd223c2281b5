"""A small interface by which ranks exchange values, and the world of one rank.

Every method of a `Cluster` is a collective unless it says otherwise: each rank must call it, in the same order. The kinds are in
`torch_cluster`, `mpi_cluster` and `pipe_cluster`; `start` finds out to which of them this process belongs.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from numpy import float32, float64
    from numpy.typing import NDArray

    SquareArray = NDArray[float32 | float64]

DEFAULT_TIMEOUT_SECONDS = 600.0
MAX_POST_BYTES = 2000


class Cluster(Protocol):
    """Ranks that exchange values."""

    rank: int
    world_size: int
    local_rank: int

    def gather(self, value: Any) -> list[Any]:
        """Every rank's `value`, in rank order, on every rank."""

    def broadcast(self, value: Any, *, source: int = 0) -> Any:
        """Rank `source`'s value, on every rank."""

    def barrier(self) -> None:
        """Return once every rank has come here."""

    def take_ticket(self, queue: str) -> int:
        """The next number (0, 1, …) of a counter that all ranks share. Not a collective: any rank, any number of times."""

    def post(self, text: str) -> None:
        """Leave `text` (at most `MAX_POST_BYTES`) where every rank can read it. Not a collective."""

    def read_posts(self) -> list[str]:
        """The last post of each rank, "" if it has none yet. Not a collective."""

    def move(self, array: SquareArray | None, *, source: int, target: int) -> SquareArray | None:
        """Carry `source`'s square array of float64 or float32 to `target`, which gets it; others get None. All ranks call it."""

    def patient(self) -> Cluster:
        """The same ranks, for collectives between which a rank may work for any time; use it in this one's place."""

    def close(self) -> None:
        """Leave the group, for good. All ranks call it, at the end of work that went well."""


class TrainingCluster(Cluster, Protocol):
    """Ranks that also exchange values in a second thread."""

    def beside(self) -> Cluster:
        """The same ranks, for collectives of one thread beside those of this cluster. A collective."""


class SingleProcess:
    """A world of one."""

    rank = 0
    world_size = 1
    local_rank = 0

    def __init__(self) -> None:
        self._tickets: dict[str, int] = {}
        self._post = ""
        self._lock = threading.Lock()

    def gather(self, value: Any) -> list[Any]:
        return [value]

    def broadcast(self, value: Any, *, source: int = 0) -> Any:
        assert source == 0
        return value

    def barrier(self) -> None:
        pass

    def beside(self) -> SingleProcess:
        return self

    def patient(self) -> SingleProcess:
        return self

    def take_ticket(self, queue: str) -> int:
        with self._lock:
            ticket = self._tickets.get(queue, 0)
            self._tickets[queue] = ticket + 1
        return ticket

    def post(self, text: str) -> None:
        self._post = text

    def read_posts(self) -> list[str]:
        return [self._post]

    def move(self, array: SquareArray | None, *, source: int, target: int) -> SquareArray | None:
        assert source == target == 0
        return array

    def close(self) -> None:
        pass
