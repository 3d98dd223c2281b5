"""Rates of this machine: of the right order, and those of ranks that wait for each other."""

from __future__ import annotations

import threading
import time
from types import SimpleNamespace

import pytest
import torch
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from kappaspeech.planning import machine
from kappaspeech.planning.duration import Rates
from kappaspeech.planning.machine import ModelProduct, measure_compute, measure_here, slowest

CPU = torch.device("cpu")
LLM = ModelProduct(64, 128, 256, torch.float32)


def test_what_is_measured_is_what_a_product_takes():
    # a mean over a twentieth of a second is far off if another program has the core; not several times running
    for _ in range(8):
        rates = measure_compute(CPU, LLM, LLM)
        plain = time_plain_product()
        if all(plain / 20 < rate < plain * 20 for rate in (rates.flops_per_second, rates.backward_flops_per_second)):
            break
    else:
        pytest.fail(f"plain products give {plain:.3g} operations a second, measured were {rates}")
    assert rates.encoder_flops_per_second > 0


def test_rates_of_memory_are_what_a_copy_and_an_activation_take_by_hand():
    source, gate = torch.ones(8 << 20), torch.randn(LLM.rows, LLM.inner)
    for _ in range(8):
        rates = measure_compute(CPU, LLM, LLM)
        copied = 2 * source.nbytes / mean_seconds(source.clone().copy_, source, count=4)
        activated = 5 * gate.nbytes / mean_seconds(lambda values: functional.silu(values) * values, gate, count=400)
        pairs = (rates.memory_bytes_per_second, copied), (rates.elementwise_bytes_per_second, activated)
        if all(by_hand / 20 < rate < by_hand * 20 for rate, by_hand in pairs):
            break
    else:
        pytest.fail(f"measured and by hand: {pairs}")


class Draws(TorchFunctionMode):
    """The devices on which random numbers are drawn."""

    def __init__(self) -> None:
        super().__init__()
        self.devices: list[str] = []

    def __torch_function__(self, function, _types, arguments=(), named=None):
        made = function(*arguments, **(named or {}))
        if function is torch.randn:
            self.devices.append(made.device.type)
        return made


def test_numbers_are_drawn_where_they_are_multiplied(monkeypatch):
    """One thread of a GPU's host drew 300 million of them at each start."""
    monkeypatch.setitem(machine._LIMITS, "meta", machine._LIMITS["cpu"])
    # that device has no generator, and numbers of none
    monkeypatch.setattr(torch, "Generator", lambda *_: SimpleNamespace(manual_seed=lambda _seed: None))
    with Draws() as draws:
        measure_compute(torch.device("meta"), LLM, LLM)
    assert set(draws.devices) == {"meta"}


def mean_seconds(work, argument: torch.Tensor, *, count: int) -> float:
    work(argument)
    began = time.perf_counter()
    for _ in range(count):
        work(argument)
    return (time.perf_counter() - began) / count


def time_plain_product() -> float:
    left, right = torch.randn(64, 128), torch.randn(128, 256)
    began = time.perf_counter()
    for _ in range(200):
        left @ right
    return 200 * 2 * 64 * 128 * 256 / (time.perf_counter() - began)


def test_ranks_of_one_machine_exchange_while_they_compute():
    one, two = (measure_here(count, num_threads=1, llm=LLM, encoder=LLM, reduced_dtype=torch.float32) for count in (1, 2))
    assert one.reduced_bytes_per_second is None
    assert one.seconds_per_message == 0
    assert 1e5 < two.bytes_per_second < 1e11
    assert 1e5 < two.reduced_bytes_per_second < 1e11
    assert 0 < two.seconds_per_message < 1


def test_what_ranks_exchange_is_counted_in_bytes_that_each_receives(monkeypatch):
    """Every timing takes half a second here, so that each rate is what it counts over what it divides by."""

    def take(_device, work) -> float:
        work()
        return 0.5

    monkeypatch.setattr(machine, "_timed", take)
    rates = measure_here(2, num_threads=1, llm=LLM, encoder=LLM, reduced_dtype=torch.float32)
    # the first message says that half as much of it may be sent, and the two ranks hold half of that each
    received = 4 * int(0.5 * (machine._FIRST_MESSAGE_BYTES // 4 // 2 + 1))
    assert rates.bytes_per_second == received / (0.5 / machine._NUM_MESSAGES)
    assert rates.reduced_bytes_per_second == rates.regathered_bytes_per_second == rates.bytes_per_second
    assert rates.seconds_per_message == rates.seconds_per_regathered == 0.5 / machine._NUM_SMALL_MESSAGES


def test_over_a_slow_network_little_is_sent(monkeypatch):
    """Ranks on 2 Mbit/s would otherwise measure for a minute before they train."""
    sent = []
    ones = torch.ones

    def counted(*shape, **options):
        made = ones(*shape, **options)
        sent.append(made.nbytes)
        return made

    monkeypatch.setattr(torch, "ones", counted)
    totals = []
    for seconds in (1e9, 1e-9):
        monkeypatch.setattr(machine, "_EXCHANGE_SECONDS", seconds)
        sent.clear()
        rates = measure_here(2, num_threads=1, llm=LLM, encoder=LLM, reduced_dtype=torch.float32)
        assert rates.bytes_per_second > 0
        assert rates.reduced_bytes_per_second > 0
        # what memory is measured with has its own size
        totals.append(sum(number for number in sent if number <= 2 * machine._MESSAGE_BYTES))
    assert totals[0] > 8 * machine._MESSAGE_BYTES
    assert totals[1] < 2 * 2 * 2 * machine._FIRST_MESSAGE_BYTES


def test_the_slowest_of_each_counts():
    first = Rates(2.0, 5.0, 3.0, seconds_per_message=0.1, seconds_per_regathered=0.4)
    second = Rates(1.0, 6.0, 4.0, seconds_per_message=0.2, seconds_per_regathered=0.3)
    assert slowest([first, second]) == Rates(1.0, 5.0, 3.0, seconds_per_message=0.2, seconds_per_regathered=0.4)


def test_updated_weights_are_priced_by_the_exchange_that_a_training_gathers_them_with(monkeypatch):
    """Ranks of one host share memory, which takes none of gloo's messages. Each timing takes two seconds if it is of the
    exchange's gathering, and else half a second."""
    # each rank is a thread
    of_rank = threading.local()

    class Counted(machine.PartExchange):
        def gather_parts(self, parts, wholes):
            of_rank.count = getattr(of_rank, "count", 0) + 1
            super().gather_parts(parts, wholes)

    def take(_device, work) -> float:
        before = getattr(of_rank, "count", 0)
        work()
        return 2.0 if getattr(of_rank, "count", 0) > before else 0.5

    monkeypatch.setattr(machine, "PartExchange", Counted)
    monkeypatch.setattr(machine, "_timed", take)
    options = {"num_threads": 1, "llm": LLM, "encoder": LLM, "reduced_dtype": torch.float32}
    rates = measure_here(2, **options)
    assert rates.regathered_bytes_per_second == rates.bytes_per_second / 4
    assert rates.reduced_bytes_per_second == rates.bytes_per_second
    assert rates.seconds_per_regathered == 2.0 / machine._NUM_SMALL_MESSAGES
    assert rates.seconds_per_message == 0.5 / machine._NUM_SMALL_MESSAGES
    assert measure_here(1, **options).regathered_bytes_per_second is None


def test_a_product_is_cut_to_what_is_soon_measured():
    large = ModelProduct(10**6, 16_384, 53_248, torch.float32)
    assert (large.cut("cpu").rows, large.cut("cpu").width, large.cut("cpu").inner) == (512, 1536, 1536)
    assert LLM.cut("cuda") == LLM


def test_what_measures_a_gpus_memory_is_larger_than_its_cache():
    """32 MB lay in an H100's cache of 50, whose rate was taken for its memory's."""
    assert machine._for(torch.device("cuda"), machine._LARGE_BYTES) > 3 * 126e6
    assert machine._for(CPU, machine._LARGE_BYTES) == machine._LARGE_BYTES
