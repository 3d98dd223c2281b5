"""CLASSP's update against closed forms, AdaGrad, and a quadratic that it leaves before the minimum."""

from __future__ import annotations

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from kappaspeech.config.classp_config import ClasspConfig
from kappaspeech.zero3.classp import Classp


@pytest.mark.parametrize("power", [1.0, 2.0, 3.0])
def test_under_a_constant_gradient_the_way_is_the_sum_of_inverse_roots_of_the_steps(power):
    weights, gradient, sums = torch.zeros(2, dtype=torch.float64), torch.tensor([0.5, -4.0], dtype=torch.float64), torch.zeros(2)
    sums = sums.double()
    for _ in range(5):
        Classp(threshold=0.0, power=power, epsilon=1e-30).move(weights, gradient, sums, rate=0.1)
    way = 0.1 * sum(step ** (-1 / power) for step in range(1, 6))
    torch.testing.assert_close(weights, torch.tensor([-way, way], dtype=torch.float64))
    torch.testing.assert_close(sums, 5 * gradient.abs() ** power)


def descend(classp: Classp, curvatures, start, *, rate: float, num_steps: int) -> torch.Tensor:
    """Steps on ½ Σ a w², whose gradient is a·w."""
    weights, sums = start.clone(), torch.zeros_like(start)
    for _ in range(num_steps):
        classp.move(weights, curvatures * weights, sums, rate=rate)
    return weights


def test_on_a_quadratic_each_weight_stops_where_its_gradient_comes_to_the_threshold():
    curvatures, start = torch.tensor([2.0, 1.0, 0.5]), torch.tensor([1.0, 1.0, 0.5])
    found = descend(Classp(threshold=0.09, power=2.0, epsilon=1e-10), curvatures, start, rate=0.01, num_steps=20_000)
    gradients = curvatures * found
    # the first two go down until |g| ≤ 0.3, no further than a step; the third has never more
    assert ((gradients[:2] <= 0.3) & (gradients[:2] > 0.29)).all()
    assert found[2] == start[2]
    free = descend(Classp(threshold=0.0, power=2.0, epsilon=1e-10), curvatures, start, rate=0.1, num_steps=20_000)
    assert free.abs().max() < 1e-3


def test_a_weight_that_does_not_move_adds_nothing_to_its_sum():
    weights, sums = torch.zeros(2), torch.zeros(2)
    Classp(threshold=1.0, power=2.0, epsilon=1e-10).move(weights, torch.tensor([1.0, 2.0]), sums, rate=0.1)
    # of a square that equals the threshold nothing moves
    assert sums.tolist() == [0.0, 4.0]
    assert weights.tolist() == pytest.approx([0.0, -0.1])


def test_many_weights_move_part_by_part_as_all_at_once(monkeypatch):
    """Of copies of a whole partition, three times what the weights take, a GPU that trains may have no room."""
    torch.manual_seed(0)
    gradient, classp = torch.randn(10), Classp(threshold=0.1, power=1.5, epsilon=1e-8)
    found = []
    for most in (1 << 22, 4):
        monkeypatch.setattr("kappaspeech.zero3.classp._ELEMENTS", most)
        weights, sums = torch.ones(10), torch.zeros(10)
        for _ in range(2):
            classp.move(weights, gradient, sums, rate=0.1)
        found.append((weights, sums))
    assert all(torch.equal(whole, parted) for whole, parted in zip(*found, strict=True))


def test_memory_beside_the_weights_is_that_of_a_part(monkeypatch):
    monkeypatch.setattr("kappaspeech.zero3.classp._ELEMENTS", 1 << 10)
    weights, gradient, sums = torch.zeros(1 << 16), torch.ones(1 << 16), torch.zeros(1 << 16)
    sizes = []

    class Sizes(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            result = func(*args, **(kwargs or {}))
            if not func.is_view and isinstance(result, torch.Tensor):
                sizes.append(result.numel())
            return result

    with Sizes():
        Classp(threshold=0.0, power=2.0, epsilon=1e-10).move(weights, gradient, sums, rate=0.1)
    assert max(sizes) == 1 << 10
    assert weights.tolist() == pytest.approx([-0.1] * (1 << 16))


@pytest.mark.parametrize("power, epsilon", [(1.0, 1e-30), (16.0, 1e-30), (2.0, 1e-10)])
def test_at_the_limits_of_its_section_the_tiniest_gradients_move_by_no_more_than_the_rate(power, epsilon):
    gradient = torch.tensor([0.0, 1e-45, 1e-38, 1e-30, 1e-20, 1e-10, 1e-3, 1.0])
    weights, sums = torch.zeros(8), torch.zeros(8)
    classp = Classp(**ClasspConfig(power=power, epsilon=epsilon).model_dump())
    for _ in range(2):
        classp.move(weights, gradient, sums, rate=0.5)
    assert torch.isfinite(weights).all()
    assert weights.abs().max() <= 1.0
    assert weights[0] == 0


def test_without_a_threshold_and_with_power_2_it_is_adagrad():
    torch.manual_seed(0)
    ours, sums, theirs = torch.zeros(64), torch.zeros(64), torch.zeros(64, requires_grad=True)
    # its ε stands in the root, where AdaGrad has its first value
    adagrad = torch.optim.Adagrad([theirs], lr=0.1, initial_accumulator_value=1e-6, eps=0.0)
    for _ in range(20):
        gradient = torch.randn(64)
        Classp(threshold=0.0, power=2.0, epsilon=1e-6).move(ours, gradient, sums, rate=0.1)
        theirs.grad = gradient
        adagrad.step()
    torch.testing.assert_close(ours, theirs.detach(), rtol=1e-5, atol=1e-6)
