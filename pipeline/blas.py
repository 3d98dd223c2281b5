"""How BLAS is to run, said before it is loaded: it reads its environment once. Imports nothing that loads it."""

from __future__ import annotations

from collections.abc import MutableMapping
from pathlib import Path

_THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "VECLIB_MAXIMUM_THREADS")
_KERNELS_VARIABLE = "OPENBLAS_CORETYPE"
_AVX512 = {"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"}


def set_up_blas(environment: MutableMapping[str, str], *, num_threads: int, cpu_info: Path = Path("/proc/cpuinfo")) -> None:
    """Pin BLAS's threads, and have OpenBLAS use AVX-512 where it doesn't by itself.

    OpenBLAS 0.3.31, which numpy and scipy bring along, takes AMD's processors of family 26 for one without AVX-512: `dsyrk`
    then runs at 0.6 of its speed. A choice made in the environment stands.
    """
    environment.update(dict.fromkeys(_THREAD_VARIABLES, str(num_threads)))
    try:
        lines = cpu_info.read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return
    # the last processor's facts; all are alike
    facts = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    if facts.get("vendor_id") == "AuthenticAMD" and set(facts.get("flags", "").split()) >= _AVX512:
        environment.setdefault(_KERNELS_VARIABLE, "SkylakeX")
