"""The dtype that this machine multiplies in fastest, found by timing products like those of a model.

Processors and GPUs say which formats they accept, not which they are fast in: without its own instructions a processor multiplies
bfloat16 at a third of its float32 rate, or at a hundredth. So both are timed, in a fraction of a second.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
# bfloat16 rounds each product, so it has to be worth it. Machines lie far from this: those that have it reach 1.7 times
# their float32 rate or more, those that emulate it half or less.
_WORTH_IT = 1.2
# The approximate time of one timing, which begins with few rows and goes to as many as that allows.
_BUDGET_SECONDS = 0.3
_PROBE_ROWS, _GROWTH = 8, 4
_MIN_WIDTH = 512
_MIN_TRIES, _MAX_TRIES = 4, 50


@dataclass(frozen=True)
class Product:
    """A matrix product (rows, inner) × (inner, columns)."""

    rows: int
    inner: int
    columns: int


# Of a size at which each device shows its best rate.
LARGE_PRODUCTS = {"cpu": Product(256, 1024, 1024), "cuda": Product(8192, 8192, 8192)}


@dataclass(frozen=True)
class DtypeChoice:
    """The dtype by name, and the reason for its choice, in words."""

    dtype: str
    reason: str


def like_model(width: int, inner_width: int, device: torch.device) -> Product:
    """A product of an MLP of these widths, cut to what can be timed at once on `device`, and large enough to time it."""
    limit = LARGE_PRODUCTS[device.type]
    inner, columns = (min(max(size, _MIN_WIDTH), most) for size, most in ((width, limit.inner), (inner_width, limit.columns)))
    return Product(limit.rows, inner, columns)


def measure_rates(device: torch.device, product: Product | None = None) -> dict[str, float]:
    """Operations a second of `product` in each dtype, by name, on one thread: the best of several tries that take turns.

    The gain of one dtype over the other is a matter of each core, and one thread waits for no other on a busy host. It is 0 in
    bfloat16 on a device that refuses it, as cuBLAS does on GPUs older than the format.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return _measure(device, tuple(DTYPES), product or LARGE_PRODUCTS[device.type])
    finally:
        torch.set_num_threads(threads)


def measure_rate(device: torch.device, dtype: torch.dtype, product: Product | None = None) -> float:
    """Operations a second of `product` in `dtype`, on as many threads as a run uses."""
    name = next(name for name, known in DTYPES.items() if known == dtype)
    return _measure(device, (name,), product or LARGE_PRODUCTS[device.type])[name]


def _measure(device: torch.device, names: Sequence[str], product: Product) -> dict[str, float]:
    """Operations a second by dtype, on random numbers: some devices multiply zeros and ones faster. A slow dtype gets few
    rows."""
    # where they are needed: for a GPU one thread of the host would draw for a second or two
    generator = torch.Generator(device).manual_seed(0)
    left = torch.randn(product.rows, product.inner, generator=generator, device=device)
    right = torch.randn(product.inner, product.columns, generator=generator, device=device)
    sides = {name: (left.to(DTYPES[name]), right.to(DTYPES[name])) for name in names}
    rows: dict[str, int] = {}
    for name, pair in list(sides.items()):
        try:
            rows[name] = _affordable_rows(*pair, device)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError:
            if name == "float32" or len(names) == 1:
                raise
            del sides[name]
    best = dict.fromkeys(names, float("inf"))
    began = time.perf_counter()
    for count in range(_MAX_TRIES):
        if count >= _MIN_TRIES and time.perf_counter() - began > _BUDGET_SECONDS:
            break
        for name, (left, right) in sides.items():
            best[name] = min(best[name], _time(left[: rows[name]], right, device))
    return {name: 2 * rows.get(name, 0) * product.inner * product.columns / seconds for name, seconds in best.items()}


def _affordable_rows(left: torch.Tensor, right: torch.Tensor, device: torch.device) -> int:
    """As many rows of `left` as can be multiplied a few times within the budget."""
    rows = min(_PROBE_ROWS, len(left))
    while rows < len(left):
        # the first prepares a kernel
        seconds = min(_time(left[:rows], right, device) for _ in range(2))
        if seconds * _GROWTH > _BUDGET_SECONDS / _MIN_TRIES:
            break
        rows = min(_GROWTH * rows, len(left))
    return rows


def _time(left: torch.Tensor, right: torch.Tensor, device: torch.device) -> float:
    _wait_for(device)
    began = time.perf_counter()
    left @ right
    _wait_for(device)
    return time.perf_counter() - began


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def is_worth_it(rates: Mapping[str, float]) -> bool:
    """Return whether bfloat16 is enough faster than float32 at these operations a second."""
    return rates["bfloat16"] > _WORTH_IT * rates["float32"]


def slowest(rates: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The rates in each dtype of ranks that wait for each other: the least of theirs."""
    return {name: min(rank[name] for rank in rates) for name in DTYPES}


def choose_dtype(rates: Mapping[str, float], device_type: str) -> DtypeChoice:
    """The dtype to compute in at these operations a second. The same for the same rates, so ranks that share them agree."""
    where = "this GPU" if device_type == "cuda" else "this processor"
    ratio = rates["bfloat16"] / rates["float32"]
    if is_worth_it(rates):
        return DtypeChoice("bfloat16", f"{where} multiplies in it {ratio:.1f} times as fast as in float32")
    if ratio == 0:
        return DtypeChoice("float32", f"{where} can't multiply in bfloat16")
    if ratio > 1 / _WORTH_IT:
        return DtypeChoice("float32", f"bfloat16 isn't faster on {where}")
    return DtypeChoice("float32", f"bfloat16 is emulated on {where}, {1 / ratio:.3g} times slower")
