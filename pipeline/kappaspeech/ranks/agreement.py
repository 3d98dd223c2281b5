"""One rank's failure reaches all ranks before their next collective."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from kappaspeech.errors import KappaSpeechError, RankFailure
from kappaspeech.ranks.cluster import Cluster

T = TypeVar("T")

_AGREED = "_known_to_all_ranks"


def is_agreed(error: BaseException) -> bool:
    """Whether an `agreement` raised this error, so that every rank knows of it."""
    return getattr(error, _AGREED, False)


@contextlib.contextmanager
def agreement(cluster: Cluster) -> Iterator[None]:
    """Run a block that may fail on some ranks; where it did, raise on every rank after it.

    The lowest rank that failed raises its own error, the others a `RankFailure` that names it, so that a cause that all
    ranks share is told once. No collective may stand inside the block: a rank that failed early wouldn't reach it.
    """
    failure: Exception | None = None
    try:
        yield
    except Exception as error:  # noqa: BLE001 - whatever the cause, the other ranks must hear of it
        failure = error
    _settle(cluster, failure, None)


def agree(cluster: Cluster, make: Callable[[], T]) -> list[T]:
    """Every rank's `make()`, in rank order, on every rank; where it failed on some, raise on every rank as `agreement` does.

    One collective, where a block in `agreement` and a gather after it are two.
    """
    failure: Exception | None = None
    value: Any = None
    try:
        value = make()
    except Exception as error:  # noqa: BLE001 - whatever the cause, the other ranks must hear of it
        failure = error
    return _settle(cluster, failure, value)


def _settle(cluster: Cluster, failure: Exception | None, value: Any) -> list[Any]:
    """Exchange how it went on each rank: raise on all where it failed on one, else every rank's `value`."""
    status = None
    if failure is not None:
        code = failure.exit_code if isinstance(failure, KappaSpeechError) else 1
        status = (f"{type(failure).__name__}: {failure}" if code == 1 else str(failure), code, socket.gethostname())
    settled = cluster.gather((status, value))
    for rank, (other, _) in enumerate(settled):
        if other is not None:
            if failure is not None and rank == cluster.rank:
                setattr(failure, _AGREED, True)
                raise failure
            raise RankFailure(rank, other[0], exit_code=other[1], host=other[2], is_told=True) from failure
    return [item for _, item in settled]
