"""Reading beside computing: the next matrix is read while the present one is measured."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def read_ahead(items: Iterable[Item], read: Callable[[Item], Result]) -> Iterator[tuple[Item, Callable[[], Result]]]:
    """Each item, and a function that waits for what `read` makes of it in a thread and returns or raises that.

    An item is taken from `items`, and its reading begun, when the item before it is given out. So there are two results at most:
    the caller's and the next one.
    """
    pool = ThreadPoolExecutor(1, thread_name_prefix="read ahead")
    try:
        ready: tuple[Item, Callable[[], Result]] | None = None
        for item in items:
            coming = item, pool.submit(read, item).result
            if ready is not None:
                yield ready
            ready = coming
        if ready is not None:
            yield ready
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
