"""The rung that finds the ends in float32 tells the truth of them, or leaves the matrix to the next."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from kappaspeech.scan.algebra import HostAlgebra
from kappaspeech.scan.checkpoint import open_checkpoint
from kappaspeech.scan.lanczos import _LEAST_WEIGHT, _start, largest_eigenpair
from kappaspeech.scan.matrices import StoredMatrix
from kappaspeech.scan.scaled_matrix import PIECE_VECTORS
from kappaspeech.scan.single_precision import suits_single
from kappaspeech.scan.spectrum import ArrayMatrix, spectrum_stats
from kappaspeech.scan.stage import scan
from tests.rank_threads import RankThreads, together

SEEDS = st.integers(0, 2**32 - 1)
DEVICES = st.sampled_from([None, "cpu"])
QUICK = settings(max_examples=60, deadline=None)


def orthonormal(rows: int, columns: int, generator: np.random.Generator) -> np.ndarray:
    return np.linalg.qr(generator.standard_normal((rows, columns)))[0]


def with_spectrum(sigmas: np.ndarray, long: int, generator: np.random.Generator) -> np.ndarray:
    short = len(sigmas)
    return ((orthonormal(short, short, generator) * sigmas) @ orthonormal(long, short, generator).T).astype(np.float32)


def rounded_to_bfloat16(weight: np.ndarray) -> np.ndarray:
    return torch.from_numpy(weight).bfloat16().float().numpy()


def hold_to_its_word(weight: np.ndarray, device: str | None = None) -> str:
    """Compare all that is measured with LAPACK's SVD in float64; the rung that measured it."""
    sigmas = np.linalg.svd(weight.astype(np.float64), compute_uv=False)
    stats = spectrum_stats(weight, device=device)
    assert abs(stats.kappa / (sigmas[0] / sigmas[-1]) - 1) <= stats.error_bound
    assert stats.error_bound <= 1e-6
    assert stats.sigma_max == pytest.approx(sigmas[0], rel=2 * stats.error_bound)
    assert stats.sigma_min == pytest.approx(sigmas[-1], rel=2 * stats.error_bound)
    assert stats.log2_volume == pytest.approx(np.log2(sigmas).sum(), abs=3e-3)
    assert stats.frobenius == pytest.approx(np.linalg.norm(sigmas), rel=1e-7)
    return stats.rung


@QUICK
@given(st.floats(0, 3), st.sampled_from(["even", "steps", "clusters"]), st.integers(2, 90), st.floats(1.3, 6), SEEDS, DEVICES)
def test_the_printed_bound_holds_whatever_the_spectrum(log_kappa, kind, short, aspect, seed, device):
    generator = np.random.default_rng(seed)
    shape = generator.beta(0.3, 0.3, short) if kind == "clusters" else generator.uniform(0, 1, short)
    shape = (np.round(3 * shape) / 3 if kind == "steps" else shape) * log_kappa
    shape[0], shape[-1] = 0, log_kappa
    hold_to_its_word(with_spectrum(10.0**-shape, math.ceil(short * aspect), generator), device)


@QUICK
@given(st.floats(-9, -2), st.booleans(), st.floats(0.1, 3.2), st.integers(3, 90), SEEDS, DEVICES)
def test_the_printed_bound_holds_of_ends_that_are_nearly_double(log_gap, is_bfloat16, log_kappa, short, seed, device):
    """float32 may turn two vectors of so close a pair by any angle, and move the two past each other."""
    generator = np.random.default_rng(seed)
    shape = generator.uniform(0, 0.7, short) * log_kappa
    shape[:2], shape[-2:] = (0, 10**log_gap), (log_kappa - 10**log_gap, log_kappa)
    weight = with_spectrum(10.0**-shape, 3 * short, generator)
    hold_to_its_word(rounded_to_bfloat16(weight) if is_bfloat16 else weight, device)


@QUICK
@given(st.floats(0, 30), st.integers(2, 90), st.floats(1.3, 4), SEEDS)
def test_the_printed_bound_holds_of_weights_with_a_mean_or_with_one_great_row(mean, short, aspect, seed):
    generator = np.random.default_rng(seed)
    weight = generator.standard_normal((short, math.ceil(short * aspect)))
    if seed % 2:
        weight += mean
    else:
        weight[0] *= 1 + mean
    hold_to_its_word(weight.astype(np.float32))


@pytest.mark.parametrize("device", [None, "cpu"])
@pytest.mark.parametrize(("short", "long"), [(64, 80), (80, 240), (576, 1536)])
def test_a_long_matrix_of_moderate_kappa_is_measured_so(short, long, device):
    weight = rounded_to_bfloat16(np.random.default_rng(1).standard_normal((short, long)).astype(np.float32))
    assert hold_to_its_word(weight, device) == hold_to_its_word(weight.T, device) == "single"


@pytest.mark.parametrize("scale", [1e17, 4e18, 3e19, 1e37])
def test_squares_beyond_float32_are_left_to_float64_without_a_word(scale, recwarn):
    weight = (np.random.default_rng(6).uniform(0.5, 1, (10, 200)) * scale).astype(np.float32)
    assert hold_to_its_word(weight) == hold_to_its_word(weight, "cpu") == "gram"
    assert not recwarn.list


def test_an_algebra_that_rounds_products_more_begins_with_float64(monkeypatch):
    """As a GPU does if TF32 is allowed."""
    weight = np.random.default_rng(7).standard_normal((40, 80)).astype(np.float32)
    monkeypatch.setattr(HostAlgebra, "has_single", False)
    assert hold_to_its_word(weight) == "gram"


def test_what_float32_cannot_know_is_left_to_float64():
    generator = np.random.default_rng(2)
    long = with_spectrum(np.geomspace(1, 0.1, 40), 120, generator)
    assert spectrum_stats(long).rung == "single"
    for other in (
        long.astype(np.float64),
        long * np.float32(1e-15),
        long * np.float32(1e17),
        with_spectrum(np.geomspace(1, 1e-4, 40), 120, generator),
        with_spectrum(np.geomspace(1, 0.1, 40), 41, generator),
        # all directions alike: none is the end's
        with_spectrum(np.ones(40), 120, generator),
    ):
        assert hold_to_its_word(other) == "gram"


@pytest.mark.parametrize(
    ("shape", "dtype", "suits"),
    [
        ((40, 50), "float32", True),
        ((50, 40), "float16", True),
        ((40, 49), "float32", False),
        ((40, 50), "float64", False),
        ((1, 50), "float32", False),
    ],
)
def test_float32_is_tried_on_long_matrices_of_narrow_formats(shape, dtype, suits):
    assert suits_single(ArrayMatrix(np.ones(shape, dtype))) == suits


def test_the_whole_spectrum_is_never_float32s():
    weight = with_spectrum(np.geomspace(1, 0.1, 40), 120, np.random.default_rng(3))
    stats = spectrum_stats(weight, with_sigmas=True)
    assert stats.rung == "gram"
    assert stats.sigmas == pytest.approx(np.linalg.svd(weight.astype(np.float64), compute_uv=False), rel=1e-9)


@QUICK
@given(st.integers(2, 60), SEEDS, st.floats(-9, 0))
def test_no_second_eigenvalue_is_above_its_bound_unless_it_is_as_good_as_the_first(size, seed, log_gap):
    generator = np.random.default_rng(seed)
    values = np.sort(generator.uniform(0, 1, size))
    values[-1] = values[-2] * (1 + 10**log_gap)
    vectors = orthonormal(size, size, generator)
    matrix = (vectors * values) @ vectors.T
    assume((abs(vectors[:, -2:].T @ _start(size)) >= _LEAST_WEIGHT / math.sqrt(size)).all())
    for rtol in (1e-3, 1e-7):
        pair = largest_eigenpair(lambda x: matrix @ x, size, rtol=rtol, max_steps=200, with_second=True)
        is_double = pair.value * (1 - 2 * pair.error) <= values[-2]
        assert is_double or pair.second >= values[-2] * (1 - 1e-12)
        # half of the way to the first at most
        assert math.isinf(pair.second) or pair.second < pair.value


def test_a_matrix_is_read_twice_and_once_more_only_for_what_float32_has_wrong(tmp_path, monkeypatch):
    generator = np.random.default_rng(4)
    mild, ill = (with_spectrum(np.append(np.geomspace(1, 0.6, 399), 1 / kappa), 2700, generator) for kappa in (4, 600))
    save_file({"ill": torch.from_numpy(ill), "mild": torch.from_numpy(mild)}, tmp_path / "model.safetensors")
    assert mild.size > HostAlgebra.kept_numbers
    seen: list[str] = []
    for name in ("block", "stored_block"):
        read = getattr(StoredMatrix, name)

        def counted(matrix, start, stop, read=read):
            seen.extend([matrix._ref.name] * (start == 0))
            return read(matrix, start, stop)

        monkeypatch.setattr(StoredMatrix, name, counted)
    ranking = scan(open_checkpoint(str(tmp_path)))
    assert [matrix.stats.rung for matrix in ranking.matrices] == ["single", "single"]
    assert seen.count("mild") == 2
    assert seen.count("ill") == 3


@pytest.mark.parametrize(("kappa", "rung"), [(20, "single"), (1e4, "gram")])
def test_ranks_that_share_a_gram_find_what_one_finds(kappa, rung, tmp_path):
    """At the greater κ the rank that has the pieces of float32 forms the whole Gram again in float64."""
    weight = with_spectrum(np.geomspace(1, 1 / kappa, 12), 2 * PIECE_VECTORS + 50, np.random.default_rng(5))
    save_file({"w": torch.from_numpy(weight)}, tmp_path / "model.safetensors")
    checkpoint = open_checkpoint(str(tmp_path))
    with RankThreads() as ranks:
        both = together(ranks.connect(2), lambda cluster: scan(checkpoint, cluster=cluster))
    assert both[0] == both[1] == scan(checkpoint)
    assert both[0].matrices[0].stats.rung == rung
