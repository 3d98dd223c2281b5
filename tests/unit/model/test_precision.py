from __future__ import annotations

import random
import time

import pytest
import torch

from kappaspeech.model import precision
from kappaspeech.model.precision import (
    LARGE_PRODUCTS,
    Product,
    choose_dtype,
    like_model,
    measure_rate,
    measure_rates,
    slowest,
)

CPU = torch.device("cpu")
# GFLOP/s in float32 and bfloat16, measured: a processor with bfloat16's instructions, one with AVX-512 but without them, and one
# with AVX2 alone
MACHINES = {"native": (44.0, 92.0), "avx512": (156.0, 44.0), "avx2": (53.0, 0.5)}


def rates(float32: float, bfloat16: float) -> dict[str, float]:
    return {"float32": float32, "bfloat16": bfloat16}


@pytest.mark.parametrize(("machine", "dtype"), [("native", "bfloat16"), ("avx512", "float32"), ("avx2", "float32")])
def test_a_noisy_machine_chooses_alike_every_time(machine, dtype):
    source = random.Random(0)
    chosen = {
        choose_dtype(rates(*(rate * source.uniform(0.75, 1.25) for rate in MACHINES[machine])), "cpu").dtype for _ in range(1000)
    }
    assert chosen == {dtype}


def test_near_a_tie_float32_is_taken():
    assert [choose_dtype(rates(1.0, ratio), "cpu").dtype for ratio in (0.9, 1.0, 1.15, 1.25)] == [
        "float32",
        "float32",
        "float32",
        "bfloat16",
    ]


def test_the_slowest_rank_decides():
    fast, slow = rates(40.0, 100.0), rates(50.0, 10.0)
    assert slowest([fast, slow]) == slowest([slow, fast]) == rates(40.0, 10.0)
    assert choose_dtype(slowest([fast, slow]), "cpu").dtype == "float32"


def test_the_choice_is_told_with_its_reason():
    assert choose_dtype(rates(156.0, 44.0), "cpu").reason == "bfloat16 is emulated on this processor, 3.55 times slower"
    assert choose_dtype(rates(40.0, 100.0), "cpu").reason == "this processor multiplies in it 2.5 times as fast as in float32"
    assert choose_dtype(rates(1.0, 1.0), "cuda").reason == "bfloat16 isn't faster on this GPU"


def test_a_rate_is_what_the_same_product_takes_by_hand():
    product = Product(256, 512, 512)
    # one that another program keeps from the core is far off; not several times running
    for _ in range(8):
        before, measured, after = plain_rate(product), measure_rate(CPU, torch.float32, product), plain_rate(product)
        if min(before, after) / 5 < measured < max(before, after) * 5:
            break
    else:
        pytest.fail(f"measured {measured:.3g} operations a second, by hand {before:.3g} and {after:.3g}")


def plain_rate(product: Product) -> float:
    left, right = torch.randn(product.rows, product.inner), torch.randn(product.inner, product.columns)
    seconds = []
    for _ in range(20):
        began = time.perf_counter()
        left @ right
        seconds.append(time.perf_counter() - began)
    return 2 * product.rows * product.inner * product.columns / min(seconds)


def test_a_dtype_that_is_slow_is_timed_on_few_rows_and_its_rate_is_that_of_whole_products(monkeypatch):
    seconds_a_row = {torch.float32: 1e-6, torch.bfloat16: 1e-2}
    timed: dict[torch.dtype, set[int]] = {torch.float32: set(), torch.bfloat16: set()}

    def take(left: torch.Tensor, _right: torch.Tensor, _device: torch.device) -> float:
        timed[left.dtype].add(len(left))
        return seconds_a_row[left.dtype] * len(left)

    monkeypatch.setattr(precision, "_time", take)
    found = measure_rates(CPU, Product(256, 64, 32))
    # two operations an element of a row's 64 × 32 products
    assert found == pytest.approx({"float32": 2 * 64 * 32 / 1e-6, "bfloat16": 2 * 64 * 32 / 1e-2})
    assert max(timed[torch.float32]) == 256
    assert timed[torch.bfloat16] == {8}


def test_what_is_timed_is_neither_too_small_to_time_nor_too_large():
    assert like_model(32, 48, CPU) == Product(LARGE_PRODUCTS["cpu"].rows, 512, 512)
    assert like_model(576, 1536, CPU) == Product(LARGE_PRODUCTS["cpu"].rows, 576, 1024)
    assert like_model(8192, 28672, CPU) == LARGE_PRODUCTS["cpu"]


def test_measuring_leaves_the_number_of_threads_as_it_was():
    before = torch.get_num_threads()
    measure_rates(CPU, Product(16, 64, 64))
    assert torch.get_num_threads() == before


def test_a_device_that_refuses_bfloat16_computes_in_float32(monkeypatch):
    """cuBLAS refuses it on some GPUs, where a training ended with a traceback before its first line."""

    def take(left: torch.Tensor, _right: torch.Tensor, _device: torch.device) -> float:
        if left.dtype == torch.bfloat16:
            raise RuntimeError("CUDA error: CUBLAS_STATUS_NOT_SUPPORTED when calling `cublasGemmEx(...)`")
        return 1e-6 * len(left)

    monkeypatch.setattr(precision, "_time", take)
    found = measure_rates(CPU, Product(256, 64, 32))
    assert found == pytest.approx({"float32": 2 * 64 * 32 / 1e-6, "bfloat16": 0.0})
    choice = choose_dtype(slowest([found, rates(1.0, 9.0)]), "cuda")
    assert (choice.dtype, choice.reason) == ("float32", "this GPU can't multiply in bfloat16")
    # who asks for it alone wants it
    with pytest.raises(RuntimeError, match="CUBLAS_STATUS_NOT_SUPPORTED"):
        measure_rate(CPU, torch.bfloat16, Product(256, 64, 32))
