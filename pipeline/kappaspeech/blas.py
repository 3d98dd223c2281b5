"""The number of BLAS's threads, set before BLAS is loaded: it reads its environment once. Imports nothing that loads it."""

from __future__ import annotations

from collections.abc import MutableMapping

_THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "VECLIB_MAXIMUM_THREADS")


def pin_threads(environment: MutableMapping[str, str], num_threads: int) -> None:
    """Have OpenMP and every BLAS that starts in `environment` use `num_threads`."""
    environment.update(dict.fromkeys(_THREAD_VARIABLES, str(num_threads)))
