"""The rates of a rank on this machine, measured in a fraction of a second with products like those of the planned run.

Unlike the choice of a dtype, which takes the best of several tries, this is the mean over all tries: on a host that does other
things too, a training gets no more than its share either.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from datetime import timedelta
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from kappaspeech.planning.batches import BatchSizes
from kappaspeech.planning.duration import Rates
from kappaspeech.planning.memory import count_tokens
from kappaspeech.planning.sizes import SpeechSizes
from kappaspeech.ranks.part_exchange import PartExchange

# About how long each rate is measured.
_BUDGET_SECONDS = 0.06
_MIN_TRIES = 2
_PROBE_ROWS = 8
# A product is cut to these (rows, width), so that it takes little time; larger ones reach the same rate.
_LIMITS = {"cpu": (512, 1536), "cuda": (8192, 8192)}
# As many bytes of weights take turns, so that they are read from memory, as a model's are, and not from a cache.
_TURN_BYTES = 24 << 20
_LARGE_BYTES = 32 << 20
_MESSAGE_BYTES = 4 << 20
# A small message is sent first. If all messages would take longer than these seconds by its rate, they are smaller.
_FIRST_MESSAGE_BYTES = 64 << 10
_EXCHANGE_SECONDS = 2.0
_NUM_MESSAGES, _NUM_SMALL_MESSAGES = 4, 16
# A GPU's cache (50 MB of an H100, 126 of a B200) and NCCL's latency are that much larger.
_GPU_FACTOR = 16
_TIMEOUT_SECONDS = 60.0


@dataclass(frozen=True)
class ModelProduct:
    """The product of an MLP, (rows, width) × (width, inner), in a dtype."""

    rows: int
    width: int
    inner: int
    dtype: torch.dtype

    def cut(self, device_type: str) -> ModelProduct:
        rows, width = _LIMITS[device_type]
        return replace(self, rows=max(1, min(self.rows, rows)), width=min(self.width, width), inner=min(self.inner, width))


def find_products(
    sizes: SpeechSizes,
    batches: BatchSizes,
    *,
    prompt_tokens: int,
    dtype: torch.dtype,
    encoder_dtype: torch.dtype,
    device_type: str,
) -> tuple[ModelProduct, ModelProduct]:
    """The LLM's product at the mean micro-batch's number of rows, and the encoder's; on a CPU it encodes clip by clip."""
    tokens = count_tokens(batches.mean, sizes, prompt_tokens=prompt_tokens)
    states = tokens.states / batches.mean.num_samples if device_type == "cpu" else tokens.states
    return (
        ModelProduct(round(tokens.llm), sizes.llm.width, sizes.llm.inner_width, dtype),
        ModelProduct(round(states), sizes.encoder_width, 4 * sizes.encoder_width, encoder_dtype),
    )


def measure_compute(device: torch.device, llm: ModelProduct, encoder: ModelProduct) -> Rates:
    """The rates of this process on its threads. What it receives is read from its own memory."""
    forward, backward = _measure_product(device, llm)
    encoding, _ = _measure_product(device, encoder, with_backward=False)
    memory = _measure_memory(device)
    return Rates(
        flops_per_second=forward,
        bytes_per_second=memory,
        backward_flops_per_second=backward,
        encoder_flops_per_second=encoding,
        elementwise_bytes_per_second=_measure_elementwise(device, llm),
        memory_bytes_per_second=memory,
    )


def measure_exchange(compute: Rates, group: Any, device: torch.device, dtype: torch.dtype) -> Rates:
    """`compute` with what a rank receives a second of weights and of gradients in `dtype`, and how long a collective takes that
    carries next to nothing; on processors also with those of updated weights, which go another way there (`PartExchange`).

    A collective of all ranks of `group`, a process group of torch.
    """
    size = group.size()
    if size == 1:
        return compute
    few, many = torch.ones(1, device=device), [torch.ones(size, device=device) for _ in range(_NUM_SMALL_MESSAGES)]

    def gather(into: Sequence[Tensor], source: Tensor) -> None:
        # DeepSpeed starts all gathers of a layer at once
        for started in [group._allgather_base(target, source) for target in into]:
            started.wait()

    exchange = PartExchange(group) if device.type == "cpu" else None

    def reduce(sources: Sequence[Tensor]) -> None:
        # and sums one bucket of gradients after the other
        for source in sources:
            if exchange is None:
                group._reduce_scatter_base(part, source).wait()
            else:
                exchange.average_parts([source])

    # the first connects the ranks
    gather(many[:1], few)
    part = torch.ones(_FIRST_MESSAGE_BYTES // dtype.itemsize // size + 1, device=device, dtype=dtype)
    slow = _longest(group, device, _timed(device, lambda: gather([part.new_empty(part.numel() * size)], part)))
    growth = min(_for(device, _MESSAGE_BYTES) / _FIRST_MESSAGE_BYTES, _EXCHANGE_SECONDS / (2 * _NUM_MESSAGES) / slow)
    part = torch.ones(max(1, int(growth * part.numel())), device=device, dtype=dtype)
    whole = [torch.ones(part.numel() * size, device=device, dtype=dtype) for _ in range(_NUM_MESSAGES)]
    latency = _timed(device, lambda: gather(many, few)) / len(many)
    gathering = _timed(device, lambda: gather(whole, part)) / len(whole)
    # What a training pays once: nobody has touched the memory of an exchange's two turns yet, and NCCL connects GPUs at a
    # collective's first use.
    for _ in range(2):
        reduce(whole[:1])
    reducing = _timed(device, lambda: reduce(whole)) / len(whole)
    received = part.nbytes * (size - 1)
    if exchange is not None:
        regather = partial(exchange.gather_parts, [part] * len(whole), whole)
        for _ in range(2):
            regather()
        compute = replace(
            compute,
            regathered_bytes_per_second=received / (_timed(device, regather) / len(whole)),
            seconds_per_regathered=_timed(device, lambda: exchange.gather_parts([few] * len(many), many)) / len(many),
        )
    return replace(
        compute,
        bytes_per_second=received / gathering,
        reduced_bytes_per_second=received / reducing,
        seconds_per_message=latency,
    )


def _longest(group: Any, device: torch.device, seconds: float) -> float:
    """The slowest rank's `seconds`, on every rank. A collective."""
    agreed = torch.tensor([seconds], device=device)
    options: Any = torch.distributed.AllreduceOptions()
    options.reduceOp = torch.distributed.ReduceOp.MAX
    group.allreduce([agreed], options).wait()
    return float(agreed)


def slowest(rates: Sequence[Rates]) -> Rates:
    """The rates of ranks that wait for each other: the least of each, and the longest collective."""
    columns = {field.name: [getattr(item, field.name) for item in rates] for field in fields(Rates)}
    found: dict[str, Any] = {
        name: None if None in values else max(values) if name.startswith("seconds_per_") else min(values)
        for name, values in columns.items()
    }
    return Rates(**found)


def measure_here(
    world_size: int, *, num_threads: int, llm: ModelProduct, encoder: ModelProduct, reduced_dtype: torch.dtype
) -> Rates:
    """The rates of each of `world_size` ranks on this machine's processors when all compute at once, `num_threads` each.

    Threads of this process stand for the ranks, and exchange over loopback as ranks of one host do.
    """
    device = torch.device("cpu")
    store = torch.distributed.HashStore()  # type: ignore[attr-defined]
    found: list[Rates] = []
    failures: list[Exception] = []

    def be_rank(rank: int) -> None:
        try:
            torch.set_num_threads(num_threads)
            group: Any = torch.distributed.ProcessGroupGloo(store, rank, world_size, timedelta(seconds=_TIMEOUT_SECONDS))
            # all ranks have come before one begins
            group.barrier().wait()
            compute = measure_compute(device, llm, encoder)
            found.append(measure_exchange(compute, group, device, reduced_dtype))
        except Exception as error:  # noqa: BLE001 - raised again once all threads have ended
            failures.append(error)

    before = torch.get_num_threads()
    ranks = [threading.Thread(target=be_rank, args=(rank,), daemon=True) for rank in range(world_size)]
    for thread in ranks:
        thread.start()
    for thread in ranks:
        thread.join()
    torch.set_num_threads(before)
    if failures:
        raise failures[0]
    return slowest(found)


def _measure_product(device: torch.device, product: ModelProduct, *, with_backward: bool = True) -> tuple[float, float]:
    """Operations a second of a linear layer's forward, and of both gradients of its backward."""
    product = product.cut(device.type)
    rows, width, inner = product.rows, product.width, product.inner
    # where they are needed: for a GPU's products of an 8B model one thread of the host would draw for many seconds
    generator = torch.Generator(device).manual_seed(0)

    def make(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, device=device).to(product.dtype)

    weight = make(inner, width)
    count = max(1, min(32, _TURN_BYTES // weight.nbytes))
    weights = [weight, *(weight.clone() for _ in range(count - 1))]
    inputs, gradients = make(rows, width), make(rows, inner)
    few = min(rows, _PROBE_ROWS)
    # an emulated dtype would take seconds for all rows
    probe = min(_timed(device, lambda: functional.linear(inputs[:few], weight)) for _ in range(2))
    if probe * rows / few > 8 * _BUDGET_SECONDS:
        rows, inputs, gradients = few, inputs[:few], gradients[:few]
    flops = 2 * rows * width * inner
    turn = [0]

    def next_weight() -> Tensor:
        turn[0] = (turn[0] + 1) % count
        return weights[turn[0]]

    def backward() -> None:
        gradients @ next_weight()
        gradients.T @ inputs

    forward_seconds = _mean_seconds(device, lambda: functional.linear(inputs, next_weight()))
    backward_seconds = _mean_seconds(device, backward) if with_backward else float("inf")
    return flops / forward_seconds, 2 * flops / backward_seconds


def _measure_elementwise(device: torch.device, product: ModelProduct) -> float:
    """Bytes a second of an MLP's gate, SiLU and a product, at its own size: five passes."""
    product = product.cut(device.type)
    gate = torch.randn(product.rows, product.inner, device=device).to(product.dtype)
    other = gate.clone()
    return 5 * gate.nbytes / _mean_seconds(device, lambda: functional.silu(gate) * other)


def _measure_memory(device: torch.device) -> float:
    """Bytes a second that a copy larger than caches reads and writes."""
    source = torch.ones(_for(device, _LARGE_BYTES) // 4, device=device)
    target = torch.ones_like(source)
    return 2 * source.nbytes / _mean_seconds(device, lambda: target.copy_(source))


def _for(device: torch.device, num_bytes: int) -> int:
    return num_bytes * (_GPU_FACTOR if device.type == "cuda" else 1)


def _mean_seconds(device: torch.device, work: Callable[[], object]) -> float:
    """Mean seconds of a call, repeated for about the budget; the first, which prepares a kernel, doesn't count."""
    work()
    _wait_for(device)
    began, count = time.perf_counter(), 0
    while count < _MIN_TRIES or time.perf_counter() - began < _BUDGET_SECONDS:
        work()
        _wait_for(device)
        count += 1
    return (time.perf_counter() - began) / count


def _timed(device: torch.device, work: Callable[[], object]) -> float:
    _wait_for(device)
    began = time.perf_counter()
    work()
    _wait_for(device)
    return time.perf_counter() - began


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
