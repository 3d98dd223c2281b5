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
    """Return whether an `agreement` raised this error, so that every rank knows of it."""
    return getattr(error, _AGREED, False)


@contextlib.contextmanager
def agreement(cluster: Cluster) -> Iterator[None]:
    """Run a block that may fail on some ranks; if it did, raise on every rank after it.

    The lowest rank that failed raises its own error. The others raise a `RankFailure` that names it, so that a cause that all
    ranks share is reported once. The block may hold no collective: a rank that failed early wouldn't reach it.
    """
    failure: Exception | None = None
    try:
        yield
    except Exception as error:  # noqa: BLE001 - whatever the cause, the other ranks must hear of it
        failure = error
    _settle(cluster, failure, None)


def agree(cluster: Cluster, make: Callable[[], T]) -> list[T]:
    """Return every rank's `make()`, in rank order, on every rank; if one failed, raise on every rank as `agreement` does.

    It takes one collective. A block in `agreement` and a gather after it take two.
    """
    failure: Exception | None = None
    value: Any = None
    try:
        value = make()
    except Exception as error:  # noqa: BLE001 - whatever the cause, the other ranks must hear of it
        failure = error
    return _settle(cluster, failure, value)


def _settle(cluster: Cluster, failure: Exception | None, value: Any) -> list[Any]:
    """Exchange each rank's outcome: raise on all if one failed, else return every rank's `value`."""
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
