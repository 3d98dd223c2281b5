"""The largest eigenvalue of a symmetric positive semi-definite operator, with a bound on the rest."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from kappaspeech.tensor_files.dtypes import FloatArray

_SEED = 20250616
# The start holds each eigenvector with a weight of g/√size, g standard normal; this is the least |g| that the bound assumes.
_LEAST_WEIGHT = 0.1
# Solving the small tridiagonal problem costs about as much as a few steps on a small matrix.
_STEPS_BETWEEN_CHECKS = 6


@dataclass(frozen=True)
class Eigenpair:
    """`value`, its unit `vector`, and `error`: a bound, relative to `value`, on how far the true one lies above."""

    value: float
    vector: FloatArray
    error: float


def largest_eigenpair(apply: Callable[[FloatArray], FloatArray], size: int, *, rtol: float, max_steps: int) -> Eigenpair:
    """Lanczos with full reorthogonalisation from a fixed random start, until the error bound is below `rtol`.

    A residual r means that some eigenvalue is within r, not that it is the largest. The bound r²/gap (Parlett, The Symmetric
    Eigenvalue Problem, 1998, §10.5) needs the gap to eigenvalues that a cluster hides. But r ≥ w·(λ₁ − θ), w being the weight of
    the largest one's vector in the Ritz vector: no less than in the start, as the Ritz polynomial grows past its last root. Hence
    the bound r/w, with the least w that a random start has. It stops after `max_steps` with the bound it has.
    """
    steps = min(size, max_steps)
    basis = np.empty((min(steps + 1, 64), size))
    start = np.random.Generator(np.random.PCG64(_SEED)).standard_normal(size)
    basis[0] = start / np.linalg.norm(start)
    diagonal: list[float] = []
    beside: list[float] = []
    while True:
        step = len(diagonal)
        image = apply(basis[step])
        diagonal.append(float(image @ basis[step]))
        known = basis[: step + 1]
        # orthogonalising twice is enough (Parlett §6.9)
        image = image - known.T @ (known @ image)
        image = image - known.T @ (known @ image)
        norm = float(np.linalg.norm(image))
        # nothing new but rounding: the basis spans an invariant subspace
        is_exhausted = norm <= 1e-14 * max(diagonal) or step + 1 == size
        is_last = is_exhausted or step + 1 >= steps
        if is_last or (step + 1) % _STEPS_BETWEEN_CHECKS == 0:
            value, weights, residual = _solve_tridiagonal(diagonal, beside, 0.0 if step + 1 == size else norm)
            error = residual * math.sqrt(size) / _LEAST_WEIGHT
            if is_last or error <= rtol:
                vector = known.T @ weights
                return Eigenpair(value, vector / np.linalg.norm(vector), error)
        beside.append(norm)
        if step + 1 == len(basis):
            basis = np.concatenate([basis, np.empty((min(len(basis), steps + 1 - len(basis)), size))])
        basis[step + 1] = image / norm


def estimate_norm(apply: Callable[[FloatArray], FloatArray], size: int, *, num_steps: int) -> float:
    """The spectral norm of a symmetric operator, from below, by `num_steps` Lanczos steps; `inf` if it isn't finite."""
    vector = np.random.Generator(np.random.PCG64(_SEED)).standard_normal(size)
    vector /= np.linalg.norm(vector)
    before, norm = np.zeros(size), 0.0
    diagonal: list[float] = []
    beside: list[float] = []
    for _ in range(min(num_steps, size)):
        image = apply(vector) - norm * before
        diagonal.append(float(image @ vector))
        image -= diagonal[-1] * vector
        norm = float(np.linalg.norm(image))
        if not np.isfinite(norm):
            return float("inf")
        beside.append(norm)
        if norm == 0:
            break
        before, vector = vector, image / norm
    off = beside[: len(diagonal) - 1]
    return float(np.abs(np.linalg.eigvalsh(np.diag(diagonal) + np.diag(off, 1) + np.diag(off, -1))).max())


def _solve_tridiagonal(diagonal: list[float], beside: list[float], norm: float) -> tuple[float, FloatArray, float]:
    """Largest Ritz value, its coordinates in the basis, and its residual relative to it."""
    values, vectors = np.linalg.eigh(np.diag(diagonal) + np.diag(beside, 1) + np.diag(beside, -1))
    value = float(values[-1])
    return value, vectors[:, -1], norm * abs(float(vectors[-1, -1])) / value if value > 0 else 0.0
