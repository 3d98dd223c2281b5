"""Lanczos's eigenvalues are within their bounds, whatever a cluster hides, and a device is seldom waited for."""

from __future__ import annotations

import math
from typing import ClassVar

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch.overrides import TorchFunctionMode

from kappaspeech.scan.lanczos import _LEAST_WEIGHT, _start, largest_eigenpair
from kappaspeech.scan.spectrum import spectrum_stats
from kappaspeech.scan.torch_algebra import TorchAlgebra

SEEDS = st.integers(0, 2**32 - 1)
QUICK = settings(max_examples=40, deadline=None)


def gaussian(shape: tuple[int, int], seed: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape)


@QUICK
@given(st.integers(1, 60), SEEDS, st.floats(0, 6))
def test_lanczos_error_covers_what_is_missing(size, seed, spread):
    values = np.sort(10 ** np.random.default_rng(seed).uniform(-spread, 0, size))
    vectors, _ = np.linalg.qr(gaussian((size, size), seed))
    matrix = (vectors * values) @ vectors.T
    pair = largest_eigenpair(lambda x: matrix @ x, size, rtol=1e-8, max_steps=200)
    assert abs(pair.value / values[-1] - 1) <= pair.error + 1e-12


@QUICK
@given(st.integers(2, 60), SEEDS, st.floats(-9, -2))
def test_lanczos_error_covers_a_pair_that_it_has_not_told_apart(size, seed, log_gap):
    """Of two eigenvalues so close, the start may hold the larger one's vector faintly, whatever the residual says."""
    values = np.sort(np.random.default_rng(seed).uniform(0, 0.9, size))
    values[-2:] = 1, 1 + 10**log_gap
    vectors, _ = np.linalg.qr(gaussian((size, size), seed))
    matrix = (vectors * values) @ vectors.T
    assume(abs(_start(size) @ vectors[:, -1]) >= _LEAST_WEIGHT / math.sqrt(size))
    for rtol in (1e-2, 1e-4, 1e-7):
        pair = largest_eigenpair(lambda x: matrix @ x, size, rtol=rtol, max_steps=200)
        assert 1 - pair.value / values[-1] <= pair.error + 1e-13


@pytest.mark.parametrize("values", [[1.0, np.nan], [1e308, 1e308]])
def test_an_operator_that_gives_no_numbers_has_no_eigenpair(values):
    pair = largest_eigenpair(lambda x: np.array(values) * x * 1e10, 2, rtol=1e-8, max_steps=9)
    assert math.isnan(pair.value)
    assert math.isnan(pair.error)


class Waits(TorchFunctionMode):
    """Counts what a host waits on a device for; what `numpy` reads has come by `cpu`."""

    NAMES: ClassVar = {"cpu", "item", "tolist", "__bool__", "__float__", "__int__", "__index__"}

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_function__(self, func, types, args=(), kwargs=None):
        self.count += getattr(func, "__name__", "") in self.NAMES
        return func(*args, **(kwargs or {}))


def test_a_device_is_waited_for_a_few_times_a_matrix_and_not_every_step():
    weight = gaussian((400, 560), 3).astype(np.float32)
    steps = 0
    times = TorchAlgebra.times

    def counted(algebra, gram, vector):
        nonlocal steps
        steps += 1
        return times(algebra, gram, vector)

    with pytest.MonkeyPatch.context() as patch, Waits() as waits:
        patch.setattr(TorchAlgebra, "times", counted)
        stats = spectrum_stats(weight, device="cpu")
    assert stats.rung == "single"
    assert steps > 30
    # what comes of the factor and of the pass, and the looks of two Lanczos runs
    assert 6 < waits.count <= 25
