"""The largest eigenvalue of a symmetric positive semi-definite operator, with a bound on the rest.

All vectors stay where the algebra computes; a check of convergence brings the numbers of T to the host, and nothing else does.

Dimension letters: m the operator's size, k the steps taken.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from scipy.linalg import lapack

from kappaspeech.scan.algebra import HostAlgebra, Vectors
from kappaspeech.tensor_files.dtypes import FloatArray

_SEED = 20250616
# The start holds each eigenvector with a weight of g/√m, g standard normal; this is the least |g| that the bound assumes.
# One start in 12,500 has less.
_LEAST_WEIGHT = 1e-4
# A norm of this share of T's largest entry is rounding's: the basis spans an invariant subspace.
_ROUNDING = 1e-14
_FIRST_CHECK = 12
_LEAST_STEPS_BETWEEN_CHECKS = 3


@dataclass(frozen=True)
class Eigenpair:
    """`value`, its unit `vector` in the algebra's type, and `error`: a bound, relative to `value`, on how far the true one lies
    above. Another eigenvalue above `second` is within `error` of `value`, a double as far as can be told; `second` is infinite
    if nothing is known. All but it are NaN if rounding has made nonsense of them."""

    value: float
    vector: Any
    error: float
    second: float = math.inf


class _Krylov:
    """An orthonormal basis Q of the space that an operator A spans from a fixed random start, and T = Qᵀ·A·Q, tridiagonal."""

    def __init__(self, apply: Callable[[Any], Any], size: int, *, max_steps: int, algebra: Vectors) -> None:
        self._apply, self._algebra = apply, algebra
        self._most = max_steps + 1
        self._basis = algebra.empty(min(self._most, 64), size)
        self._basis[0] = algebra.vector(_start(size))
        # T's diagonal and what is beside it
        self._entries = algebra.empty(2, max_steps)
        self._norm: Any = 0.0
        self.num_steps = 0

    def advance(self, num_steps: int) -> None:
        """Take steps until there are that many. Past an invariant subspace they divide by zero, which `read` leaves out."""
        with np.errstate(all="ignore"):
            while self.num_steps < num_steps:
                self._step()

    def _step(self) -> None:
        step = self.num_steps
        if step + 1 == len(self._basis) and step + 1 < self._most:
            longer = self._algebra.empty(min(2 * len(self._basis), self._most), self._basis.shape[1])
            longer[: step + 1] = self._basis
            self._basis = longer
        known = self._basis[: step + 1]
        last = known[step]
        image = self._apply(last)
        share = image @ last
        # the recurrence is the first of the two orthogonalisations that are enough (Parlett §6.9)
        image = image - share * last
        if step:
            image -= self._norm * known[step - 1]
        image -= known.T @ (known @ image)
        self._norm = (image @ image) ** 0.5
        self._entries[0, step], self._entries[1, step] = share, self._norm
        if step + 1 < self._most:
            self._basis[step + 1] = image / self._norm
        self.num_steps = step + 1

    def read(self) -> tuple[FloatArray, FloatArray, bool]:
        """T's diagonal and what is beside it, (k,) each, as far as they are more than rounding; True if that isn't all."""
        diagonal, beside = self._algebra.to_numpy(self._entries[:, : self.num_steps])
        is_rounding = ~(beside > _ROUNDING * np.maximum.accumulate(np.abs(diagonal)))
        is_exhausted = bool(is_rounding.any())
        steps = int(np.argmax(is_rounding)) + 1 if is_exhausted else self.num_steps
        return diagonal[:steps], beside[:steps], is_exhausted

    def combine(self, weights: FloatArray) -> Any:
        """The unit vector of these coordinates in the basis."""
        vector = self._basis[: len(weights)].T @ self._algebra.vector(weights)
        return vector / (vector @ vector) ** 0.5


@lru_cache(maxsize=16)
def _start(size: int) -> FloatArray:
    """The unit vector that all runs of this size start from."""
    vector = np.random.Generator(np.random.PCG64(_SEED)).standard_normal(size)
    return vector / float(np.linalg.norm(vector))


def largest_eigenpair(
    apply: Callable[[Any], Any],
    size: int,
    *,
    rtol: float,
    max_steps: int,
    algebra: Vectors | None = None,
    with_second: bool = False,
) -> Eigenpair:
    """Lanczos with full reorthogonalisation from a fixed random start, until the error bound is below `rtol`.

    A residual r means that some eigenvalue is within r, not that it is the largest. The bound r²/gap (Parlett, The Symmetric
    Eigenvalue Problem, 1998, §10.5) needs the gap to eigenvalues that a cluster hides. But r ≥ w·(λ₁ − θ), w being the weight of
    the largest one's vector in the Ritz vector P(A)·b of the start b. P has the other Ritz values as its roots, so it grows from
    θ on, and P(θ) = 1/|s|, s being the Ritz vector's weight in b: P(T)·e₁ is the Ritz vector in the basis. Hence w ≥ w₀/|s|, and
    the bound r·|s|/w₀, w₀ being the least weight that a random start has. It stops after `max_steps` with the bound it has.

    `with_second` bounds the second one by its own Ritz pair, and goes on until most of their distance is certain.
    """
    algebra = algebra or HostAlgebra()
    most = min(size, max_steps)
    krylov = _Krylov(apply, size, max_steps=most, algebra=algebra)
    checks = _Checks(rtol, most)
    while True:
        krylov.advance(checks.next_step)
        diagonal, beside, is_exhausted = krylov.read()
        if not (np.isfinite(diagonal).all() and np.isfinite(beside).all()):
            return Eigenpair(math.nan, None, math.nan)
        value, weights = _eigenpair_of_tridiagonal(diagonal, beside[:-1], rank=1)
        # the whole space leaves no residual
        last = 0.0 if len(diagonal) == size else float(beside[-1])
        excess = _hidden_above(weights, last, size)
        error = excess / value if value > 0 else 0.0
        is_last = is_exhausted or krylov.num_steps == most
        if not is_last and error > rtol:
            checks.add(error)
            continue
        if not with_second:
            return Eigenpair(value, krylov.combine(weights), error)
        second = math.inf
        if len(diagonal) == size or (not is_exhausted and len(diagonal) > 1):
            second = _bound_second(value, diagonal, beside, last, size)
        if is_last or second < value:
            return Eigenpair(value, krylov.combine(weights), error, second)
        checks.wait(_LEAST_STEPS_BETWEEN_CHECKS)


def _hidden_above(weights: FloatArray, last: float, size: int) -> float:
    """The most by which an eigenvalue is above that of a Ritz vector with these weights in the basis."""
    residual = last * abs(float(weights[-1]))
    return residual * max(1.0, abs(float(weights[0])) * math.sqrt(size) / _LEAST_WEIGHT)


def _bound_second(first: float, diagonal: FloatArray, beside: FloatArray, last: float, size: int) -> float:
    """A value that the second largest eigenvalue isn't above; infinite if that may be too near to the first.

    Let λ be it, θ the second of k Ritz values, g = θ₁ − θ and K what `_hidden_above` says of θ. The polynomial of θ's Ritz vector
    has θ₁ for a root, so it holds λ's vector with w₀/|s|·(θ₁ − λ)/g at least, and (λ − θ)·(θ₁ − λ) ≤ K·g. So λ is at most the
    smaller of the two that make both sides equal, the bound, or at least the larger. If K ≤ g/(4k), the larger is so near to θ₁
    that the first pair's polynomial holds λ's vector with 0.7·w₀/|s₁| at least, and its residual would betray a λ that isn't
    θ₁'s double to 1.4 times its `error`.
    """
    theta, weights = _eigenpair_of_tridiagonal(diagonal, beside[:-1], rank=2)
    gap, hidden = first - theta, _hidden_above(weights, last, size)
    if not 4 * len(diagonal) * hidden < gap:
        return math.inf
    return theta + gap / 2 * (1 - math.sqrt(1 - 4 * hidden / gap))


class _Checks:
    """The steps after which the error is looked at: a look waits for the device and costs about a step. Once it falls, the error
    falls geometrically."""

    def __init__(self, rtol: float, most: int) -> None:
        self._rtol, self._most = rtol, most
        self._seen: list[tuple[int, float]] = []
        self.next_step = min(_FIRST_CHECK, most)

    def add(self, error: float) -> None:
        """Count a look at `next_step`, and set the next one short of where the error would pass."""
        step = self.next_step
        wait = step / 3
        if self._seen and error < self._seen[-1][1]:
            before, was = self._seen[-1]
            wait = min(wait, math.log(error / self._rtol) / math.log(was / error) * (step - before))
        self._seen.append((step, error))
        self.wait(max(_LEAST_STEPS_BETWEEN_CHECKS, math.ceil(wait)))

    def wait(self, num_steps: int) -> None:
        self.next_step = min(self._most, self.next_step + num_steps)


def estimate_norm(apply: Callable[[Any], Any], size: int, *, num_steps: int, algebra: Vectors | None = None) -> float:
    """The spectral norm of a symmetric operator, from below, by `num_steps` Lanczos steps; `inf` if it isn't finite."""
    most = min(num_steps, size)
    krylov = _Krylov(apply, size, max_steps=most, algebra=algebra or HostAlgebra())
    krylov.advance(most)
    diagonal, beside, _ = krylov.read()
    if not (np.isfinite(diagonal).all() and np.isfinite(beside).all()):
        return float("inf")
    off = beside[:-1]
    return float(np.abs(np.linalg.eigvalsh(np.diag(diagonal) + np.diag(off, 1) + np.diag(off, -1))).max())


def _eigenpair_of_tridiagonal(diagonal: FloatArray, beside: FloatArray, *, rank: int) -> tuple[float, FloatArray]:
    """The largest eigenvalue but `rank` − 1 of a tridiagonal matrix and its unit vector, by bisection and inverse iteration."""
    size = len(diagonal)
    if size == 1:
        return float(diagonal[0]), np.ones(1)
    wanted = size + 1 - rank
    _, values, block, split, failed = lapack.dstebz(diagonal, beside, 2, 0.0, 0.0, wanted, wanted, 0.0, "B")
    if not failed:
        vectors, failed = lapack.dstein(diagonal, beside, values[:1], block, split)
    if failed:
        values, vectors = np.linalg.eigh(np.diag(diagonal) + np.diag(beside, 1) + np.diag(beside, -1))
        return float(values[-rank]), vectors[:, -rank]
    return float(values[0]), vectors[:, 0]
