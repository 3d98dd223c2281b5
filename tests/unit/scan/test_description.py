"""The facts that a ranking has of a matrix beside its spectrum."""

from __future__ import annotations

import numpy as np
import pytest

from kappaspeech.scan.description import storage_noise
from kappaspeech.scan.spectrum import spectrum_stats


def test_storage_noise_is_how_far_rounding_moves_the_least_singular_value():
    """Of matrices of one spectrum: the scatter of σ₃₀ after rounding to float16, over what is predicted of it."""
    sigmas = np.geomspace(1, 1e-2, 30)
    moved, predicted = [], []
    for seed in range(60):
        generator = np.random.default_rng(seed)
        left, _ = np.linalg.qr(generator.standard_normal((30, 30)))
        right, _ = np.linalg.qr(generator.standard_normal((50, 30)))
        weight = (left * sigmas) @ right.T
        stats = spectrum_stats(weight.astype(np.float16))
        moved.append(stats.sigma_min / sigmas[-1] - 1)
        predicted.append(storage_noise(stats, "float16"))
    assert np.std(moved) == pytest.approx(np.mean(predicted), rel=0.4)


def test_codes_and_matrices_of_lower_rank_have_no_storage_noise():
    assert storage_noise(spectrum_stats(np.eye(3)), "int8") is None
    assert storage_noise(spectrum_stats(np.zeros((3, 4))), "float32") is None
