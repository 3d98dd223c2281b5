from __future__ import annotations

import pytest
import torch

from kappaspeech.training.drift import measure_movement


def test_a_matrix_moves_by_its_relative_frobenius_and_its_kappa():
    before = torch.diag(torch.tensor([4.0, 3.0, 2.0]))
    after = torch.diag(torch.tensor([4.0, 3.0, 1.0]))
    movement = measure_movement(before, after)
    assert movement.relative_frobenius == pytest.approx(1 / 29**0.5)
    assert (movement.kappa_before, movement.kappa_after) == (pytest.approx(2.0), pytest.approx(4.0))


def test_what_is_no_matrix_has_no_kappa():
    movement = measure_movement(torch.tensor([3.0, 4.0]), torch.tensor([3.0, 4.0]))
    assert (movement.relative_frobenius, movement.kappa_before, movement.kappa_after) == (0.0, None, None)
