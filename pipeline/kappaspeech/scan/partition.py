"""The cost of a matrix, and the assignment of matrices to ranks. Pure: it knows no process."""

from __future__ import annotations

import heapq
import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

# Seconds on one x86 core (measured on bf16 matrices); only their proportions matter here.
_GRAM_RATE = 3.85e10
# in float32
_SINGLE_RATE = 7.7e10
_CHOLESKY_RATE = 1.2e11
_LANCZOS_SECONDS = 1.25 / 4096**2
_READING_SECONDS = 1e-8
# The least cost of a matrix, however small: Python, a read, a line in the journal.
FIXED_SECONDS = 2e-3
_LARGEST_SHARE = 0.25
# Bytes of a process beside what its matrix takes, and for each number of a Gram on the rung that takes most.
_PROCESS_BYTES, _BYTES_PER_SQUARE = 100 << 20, 20
# A matrix of at most this many stored bytes is kept while it is measured; a larger one is read again for each pass.
MAX_HELD_BYTES = 256 << 20
# A Gaussian matrix this much longer than short has κ = 18; a square one has κ ~ m, of which float32 knows nothing.
_LEAST_ASPECT = 1.25


def is_long(shape: tuple[int, int]) -> bool:
    """True of a shape whose matrices float32 is likely to know enough of."""
    return max(shape) >= _LEAST_ASPECT * min(shape)


def gram_cost(shape: tuple[int, int]) -> float:
    """Seconds of one core to read a matrix and form its Gram."""
    short, long = min(shape), max(shape)
    return short**2 * long / (_SINGLE_RATE if is_long(shape) else _GRAM_RATE) + _READING_SECONDS * short * long


def finishing_cost(shape: tuple[int, int]) -> float:
    """Seconds of one core from the Gram to the statistics."""
    short = min(shape)
    return short**3 / _CHOLESKY_RATE + _LANCZOS_SECONDS * short**2 + FIXED_SECONDS


def reading_cost(shape: tuple[int, int]) -> float:
    """Seconds of one core to read a matrix and find that it has been measured."""
    return _READING_SECONDS * shape[0] * shape[1] + FIXED_SECONDS


def blocking_seconds(shape: tuple[int, int]) -> float:
    """The time for which one call into LAPACK or BLAS may keep every thread of a slow process waiting."""
    short = min(shape)
    return 4 * short**3 / _CHOLESKY_RATE


def fitting_processes(shapes: Sequence[tuple[int, int]], *, most: int, free_bytes: int) -> int:
    """The number of processes, one to `most`, whose memory fits into `free_bytes` even if they measure the largest matrices at
    once."""
    return _count_fitting([_PROCESS_BYTES + matrix_bytes(shape) for shape in shapes], most=most, free_bytes=free_bytes)


def memory_limits(shapes: Sequence[tuple[int, int]], *, hosts: Sequence[str], free_bytes: Sequence[int]) -> list[float]:
    """The most bytes that a matrix may take of each rank, so that ranks of a host never fill it together; `inf` for any matrix.

    `hosts` and `free_bytes` are by rank. As many of a host's ranks as its memory is enough for take any matrix, one at least; the
    others share what these leave.
    """
    limits = [math.inf] * len(hosts)
    largest = sorted(map(matrix_bytes, shapes), reverse=True)
    for host in dict.fromkeys(hosts):
        ranks = [rank for rank, name in enumerate(hosts) if name == host]
        free = min(free_bytes[rank] for rank in ranks)
        fitting = _count_fitting(largest, most=len(ranks), free_bytes=free)
        for rank in ranks[fitting:]:
            limits[rank] = max(0, free - sum(largest[:fitting])) / (len(ranks) - fitting)
    return limits


def _count_fitting(sizes: Sequence[int], *, most: int, free_bytes: int) -> int:
    largest = sorted(sizes, reverse=True)[:most]
    fitting = sum(total <= free_bytes for total in itertools.accumulate(largest))
    # processes beyond the number of matrices have none to hold
    return most if fitting == len(largest) else max(1, fitting)


def matrix_bytes(shape: tuple[int, int]) -> int:
    """The memory that measuring a matrix takes, at most."""
    return min(MAX_HELD_BYTES, 4 * math.prod(shape)) + _BYTES_PER_SQUARE * min(shape) ** 2


@dataclass(frozen=True)
class Task:
    """Matrix number `matrix`, whole, or one `piece` of its Gram."""

    matrix: int
    cost: float
    piece: int | None = None


def plan(
    shapes: Sequence[tuple[int, int]],
    num_pieces: Sequence[int],
    *,
    world_size: int,
    known_costs: Sequence[float | None] | None = None,
) -> list[Task]:
    """Tasks, the costliest first. A matrix past a quarter of the ideal makespan is cut into its pieces.

    `known_costs` are those of matrices that likely need no measuring.
    """
    known = known_costs or [None] * len(shapes)
    costs = [
        gram_cost(shape) + finishing_cost(shape) if cost is None else cost for shape, cost in zip(shapes, known, strict=True)
    ]
    limit = _LARGEST_SHARE * sum(costs) / world_size
    tasks = []
    for matrix, (shape, cost) in enumerate(zip(shapes, costs, strict=True)):
        pieces = num_pieces[matrix]
        if world_size > 1 and pieces > 1 and cost > limit:
            tasks += [Task(matrix, gram_cost(shape) / pieces, piece) for piece in range(pieces)]
        else:
            tasks.append(Task(matrix, cost))
    return sorted(tasks, key=lambda task: (-task.cost, task.matrix, task.piece or 0))


def assign(
    costs: Sequence[float], world_size: int, *, takes: Callable[[int, int], bool] = lambda _index, _rank: True
) -> list[list[int]]:
    """Indices of `costs` for each rank: the costliest first, each to the rank with the least so far (LPT; Graham 1969).

    An index goes to ranks alone for which `takes(index, rank)` is true, one at least.
    """
    shares: list[list[int]] = [[] for _ in range(world_size)]
    loads = [(0.0, rank) for rank in range(world_size)]
    for index in sorted(range(len(costs)), key=lambda index: (-costs[index], index)):
        passed = []
        load, rank = heapq.heappop(loads)
        while not takes(index, rank):
            passed.append((load, rank))
            load, rank = heapq.heappop(loads)
        shares[rank].append(index)
        for entry in (*passed, (load + costs[index], rank)):
            heapq.heappush(loads, entry)
    return shares
