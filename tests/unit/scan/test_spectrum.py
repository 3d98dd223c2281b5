"""Properties of the measured spectrum. Tolerances: κ is asked for to 1e-6, and must hold the bound that it prints."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from kappaspeech.errors import InputError, ScanError
from kappaspeech.scan.scaled_matrix import PIECE_VECTORS, num_pieces, piece_gram
from kappaspeech.scan.scores import SCORES
from kappaspeech.scan.spectrum import ArrayMatrix, measure, spectrum_stats
from kappaspeech.scan.statistics import SpectrumStats

SHAPES = st.tuples(st.integers(2, 24), st.integers(2, 24))
SEEDS = st.integers(0, 2**32 - 1)
QUICK = settings(max_examples=40, deadline=None)


def gaussian(shape: tuple[int, int], seed: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape)


def with_spectrum(sigmas: np.ndarray, long: int, seed: int) -> np.ndarray:
    left, _ = np.linalg.qr(gaussian((len(sigmas), len(sigmas)), seed))
    right, _ = np.linalg.qr(gaussian((long, len(sigmas)), seed + 1))
    return (left * sigmas) @ right.T


def svd_kappa(weight: np.ndarray) -> float:
    sigmas = np.linalg.svd(weight, compute_uv=False)
    return float(sigmas[0] / sigmas[-1])


@QUICK
@given(SHAPES, SEEDS, st.sampled_from([1e-3, 7.0, 2.0**40]))
def test_kappa_is_invariant_to_scale(shape, seed, factor):
    weight = gaussian(shape, seed)
    one, other = spectrum_stats(weight), spectrum_stats(factor * weight)
    assert other.kappa == pytest.approx(one.kappa, rel=one.error_bound + other.error_bound)
    assert other.log2_volume == pytest.approx(one.log2_volume + min(shape) * math.log2(factor), abs=1e-6)


@QUICK
@given(SHAPES, SEEDS)
def test_kappa_and_volume_are_invariant_to_transposition(shape, seed):
    weight = gaussian(shape, seed)
    one, other = spectrum_stats(weight), spectrum_stats(weight.T)
    assert other.kappa == pytest.approx(one.kappa, rel=one.error_bound + other.error_bound)
    assert other.log2_volume == pytest.approx(one.log2_volume, abs=1e-6)
    assert other.shape == one.shape[::-1]


@QUICK
@given(SHAPES, SEEDS)
def test_kappa_is_invariant_to_orthogonal_factors(shape, seed):
    weight = gaussian(shape, seed)
    left, _ = np.linalg.qr(gaussian((shape[0], shape[0]), seed + 1))
    right, _ = np.linalg.qr(gaussian((shape[1], shape[1]), seed + 2))
    one, other = spectrum_stats(weight), spectrum_stats(left @ weight @ right)
    # the factors are orthogonal to a few roundings, which κ multiplies
    assert other.kappa == pytest.approx(one.kappa, rel=one.error_bound + other.error_bound + 1e-13 * one.kappa)


@QUICK
@given(SHAPES, SEEDS)
def test_at_fixed_norm_the_volume_is_greatest_where_kappa_is_one(shape, seed):
    """Theorem 1 of arXiv:2506.16289."""
    weight = gaussian(shape, seed)
    stats = spectrum_stats(weight)
    greatest = min(shape) * math.log2(stats.frobenius / math.sqrt(min(shape)))
    assert stats.log2_volume <= greatest + 1e-9
    orthogonal, _ = np.linalg.qr(gaussian((max(shape), min(shape)), seed))
    equal = spectrum_stats(orthogonal * stats.frobenius / math.sqrt(min(shape)))
    assert equal.kappa == pytest.approx(1, abs=1e-6)
    assert equal.log2_volume == pytest.approx(greatest, abs=1e-6)


@pytest.mark.parametrize("kind", ["even", "one small", "close pair"])
@pytest.mark.parametrize("kappa", [1.5, 1e2, 1e4, 1e5, 1e6])
@pytest.mark.parametrize("long", [80, 170])
def test_kappa_to_a_million_is_within_1e6th_and_within_its_bound(kind, kappa, long):
    sigmas = np.geomspace(1, 1 / kappa, 80) if kind == "even" else np.ones(80)
    sigmas[-1] = 1 / kappa
    if kind == "close pair":
        sigmas[-2] = 1.0001 / kappa
    weight = with_spectrum(sigmas, long, seed=3)
    stats = spectrum_stats(weight)
    error = abs(stats.kappa / svd_kappa(weight) - 1)
    assert error <= stats.error_bound
    assert stats.error_bound <= 1e-6


LOG_KAPPAS = st.one_of(st.floats(0, 11), st.floats(-9, 0).map(lambda exponent: 10.0**exponent))


@QUICK
@example(5.960464477539063e-08, "even", 18, 0, 50467)  # close eigenvalues that Lanczos hasn't told apart
@example(2.0, "clusters", 35, 0, 440)  # a start that holds 0.002 of the last vector's usual weight
@given(LOG_KAPPAS, st.sampled_from(["even", "steps", "clusters"]), st.integers(2, 90), st.integers(0, 40), SEEDS)
def test_the_printed_bound_always_holds(log_kappa, kind, short, extra, seed):
    generator = np.random.default_rng(seed)
    shape = generator.beta(0.3, 0.3, short) if kind == "clusters" else generator.uniform(0, 1, short)
    shape = (np.round(3 * shape) / 3 if kind == "steps" else shape) * log_kappa
    shape[0], shape[-1] = 0, log_kappa
    weight = with_spectrum(10.0**-shape, short + extra, seed)
    stats = spectrum_stats(weight)
    assert abs(stats.kappa_nonzero / svd_kappa(weight) - 1) <= stats.error_bound
    assert stats.zero_sigmas == 0


def test_each_rung_is_climbed_where_the_one_below_cannot_hold_the_tolerance():
    rungs = [spectrum_stats(with_spectrum(np.geomspace(1, 1 / kappa, 60), 90, seed=0)).rung for kappa in (1e2, 1e6, 1e10)]
    assert rungs == ["gram", "cholqr2", "svd"]


@pytest.mark.parametrize("device", [None, "cpu", *(["cuda"] if torch.cuda.is_available() else [])])
@pytest.mark.parametrize("kappa", [1e2, 1e6, 1e10])
def test_all_singular_values_come_from_every_rung_on_every_device(device, kappa):
    weight = with_spectrum(np.geomspace(1, 1 / kappa, 60), 90, seed=0)
    stats = spectrum_stats(weight, with_sigmas=True, device=device)
    expected = np.linalg.svd(weight, compute_uv=False)
    assert stats.sigmas == pytest.approx(expected, rel=max(1e-6, 1e-15 * kappa))
    assert (stats.sigmas[0], stats.sigmas[-1]) == (stats.sigma_max, stats.sigma_min)
    assert (np.diff(stats.sigmas) <= 0).all()
    assert spectrum_stats(weight).sigmas is None


@QUICK
@given(st.floats(0, 11), st.integers(1, 40), st.integers(0, 40), SEEDS, st.sampled_from(["float16", "float32", "float64"]))
def test_torch_gives_what_the_host_gives(log_kappa, short, extra, seed, dtype):
    weight = with_spectrum(10.0 ** -np.random.default_rng(seed).uniform(0, log_kappa, short), short + extra, seed)
    weight = weight.astype(dtype)
    host, torchs = spectrum_stats(weight), spectrum_stats(weight, device="cpu")
    assert torchs.kappa_nonzero == pytest.approx(host.kappa_nonzero, rel=host.error_bound + torchs.error_bound + 1e-12)
    assert torchs.zero_sigmas == host.zero_sigmas
    of_single = "single" in (host.rung, torchs.rung)
    assert torchs.log2_volume == pytest.approx(host.log2_volume, abs=3e-3 if of_single else 1e-6)


def test_a_device_that_is_not_there_is_named():
    for device in ("cuda:99", "nonsense", "meta"):
        with pytest.raises(InputError, match=device):
            spectrum_stats(np.eye(3), device=device)


def test_the_svd_method_agrees_with_the_default():
    weight = gaussian((50, 30), 1)
    plain, fast = spectrum_stats(weight, method="svd"), spectrum_stats(weight)
    assert plain.rung == "svd"
    assert plain.kappa == pytest.approx(svd_kappa(weight), rel=1e-12)
    assert fast.kappa == pytest.approx(plain.kappa, rel=fast.error_bound)
    assert fast.log2_volume == pytest.approx(plain.log2_volume, abs=1e-8)
    assert fast.stable_rank == pytest.approx(plain.stable_rank, rel=1e-6)


@QUICK
@given(SHAPES, SEEDS)
def test_zero_and_repeated_rows_count_as_zero_singular_values(shape, seed):
    weight = gaussian(shape, seed)
    weight[-1] = 0 if seed % 2 else weight[0]
    stats = spectrum_stats(weight)
    sigmas = np.linalg.svd(weight, compute_uv=False)
    missing = max(0, min(shape) - (shape[0] - 1))
    assert stats.zero_sigmas == missing
    assert math.isinf(stats.kappa) == (missing > 0)
    last = sigmas[min(shape) - missing - 1]
    assert stats.kappa_nonzero == pytest.approx(sigmas[0] / last, rel=1e-6)


def test_a_zero_matrix_has_only_zero_singular_values():
    stats = spectrum_stats(np.zeros((3, 5)))
    assert (stats.zero_sigmas, stats.sigma_max, stats.stable_rank, stats.log2_volume) == (3, 0, 0, 0)
    assert stats.kappa == stats.kappa_nonzero == math.inf


@pytest.mark.parametrize("shape", [(1, 7), (7, 1), (1, 1)])
def test_a_vector_has_one_singular_value_its_norm(shape):
    stats = spectrum_stats(np.full(shape, -2.0))
    assert (stats.kappa, stats.zero_sigmas) == (1, 0)
    assert stats.sigma_max == pytest.approx(2 * math.sqrt(math.prod(shape)))


@pytest.mark.parametrize("shape", [(0, 4), (4, 0), (4,), (2, 2, 2)])
def test_what_is_no_matrix_is_refused(shape):
    with pytest.raises(ValueError, match="two dimensions"):
        spectrum_stats(np.zeros(shape))


@pytest.mark.parametrize("kind", [np.array, torch.tensor])
def test_complex_numbers_are_refused_and_not_cut_to_their_real_parts(kind):
    with pytest.raises(ValueError, match="real numbers is expected; this is complex128"):
        spectrum_stats(kind([[1 + 2j, 3.0], [0.5, 4.0]], dtype=np.complex128 if kind is np.array else torch.complex128))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("method", ["auto", "svd"])
def test_a_number_that_is_none_is_refused(bad, dtype, method):
    weight = gaussian((4, 6), 0).astype(dtype)
    weight[2, 3] = bad
    with pytest.raises(ScanError, match="NaN or infinity"):
        spectrum_stats(weight, method=method)


@pytest.mark.parametrize(
    ("dtype", "scale"),
    [(np.float32, 1e30), (np.float32, 1e-30), (np.float32, 1e-42), (np.float64, 1e300), (np.float64, 1e-300), (np.float16, 1e-6)],
)
def test_huge_tiny_and_denormal_numbers_are_measured_as_any(dtype, scale):
    weight = (gaussian((12, 20), 5) * scale).astype(dtype)
    exact = weight.astype(np.float64) / scale
    stats = spectrum_stats(weight)
    assert stats.kappa == pytest.approx(svd_kappa(exact), rel=1e-6)
    volume = np.log2(np.linalg.svd(exact, compute_uv=False)).sum() + 12 * math.log2(scale)
    assert stats.log2_volume == pytest.approx(volume, abs=1e-5)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32", "float64"])
def test_torch_tensors_of_any_float_dtype_are_read_exactly(dtype):
    import torch

    weight = torch.from_numpy(gaussian((9, 14), 2)).to(getattr(torch, dtype))
    assert spectrum_stats(weight).kappa == pytest.approx(svd_kappa(weight.double().numpy()), rel=1e-9)


def test_pieces_add_up_to_the_same_bits_whoever_forms_them():
    values = gaussian((PIECE_VECTORS * 2 + 100, 6), 4).astype(np.float32)
    matrix = ArrayMatrix(values)
    assert num_pieces(matrix.long) == 3
    grams = [piece_gram(matrix, piece, is_single=True) for piece in (2, 0, 1)]
    together = (grams[1] + grams[2]) + grams[0]
    assert measure(matrix, gram=together) == measure(matrix)


def test_entropy_is_that_of_a_gaussian_pushed_through_the_matrix():
    weight = gaussian((4, 9), 7)
    covariance = 0.25 * weight @ weight.T
    _, log_det = np.linalg.slogdet(2 * np.pi * np.e * covariance)
    assert spectrum_stats(weight).output_entropy_bits(0.5) == pytest.approx(log_det / 2 / np.log(2), rel=1e-10)


@pytest.mark.parametrize("values", [np.full((2, 3), 1.7e308), np.diag([1e-300, 1e-310])])
def test_spectra_beyond_float64_are_no_numbers_and_no_crash(values):
    with pytest.raises(ScanError, match="beyond the range"):
        spectrum_stats(values)


def test_every_score_of_an_extreme_spectrum_is_a_number_or_infinite():
    stats = SpectrumStats((2, 2), 1.0, 1e-300, 0, -5000.0, 1.0, 0.0, "svd")
    assert all(score(stats) > 0 for score in SCORES.values())
