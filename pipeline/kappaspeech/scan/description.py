"""A measured matrix as a ranking lists it: its spectrum, the facts that its checkpoint has of it, and what rounding moved."""

from __future__ import annotations

import math
from dataclasses import replace

from kappaspeech.expert_names import expert_name
from kappaspeech.scan.matrices import MatrixRef
from kappaspeech.scan.ranking import RankedMatrix
from kappaspeech.scan.statistics import SpectrumStats
from kappaspeech.tensor_files.dtypes import FLOATS


def describe(ref: MatrixRef, stats: SpectrumStats) -> RankedMatrix:
    """A measured matrix with the facts that its checkpoint has of it."""
    aliases = ref.tensor.aliases if ref.expert is None else (expert_name(alias, ref.expert) for alias in ref.tensor.aliases)
    return RankedMatrix(
        name=ref.name,
        parameter=ref.tensor.name,
        shape=ref.tensor.shape,
        dtype=ref.tensor.dtype,
        stats=replace(stats, shape=ref.shape),
        expert=ref.expert,
        aliases=tuple(aliases),
        storage_noise=None if ref.is_of_packed_codes else storage_noise(stats, ref.tensor.dtype),
    )


def storage_noise(stats: SpectrumStats, dtype: str) -> float | None:
    """The relative change of σ_min by rounding to `dtype`: about one standard deviation.

    A stored number is off by a relative error of standard deviation u/√6 or so (uniform within half a unit in the last place); to
    first order σ_min moves by uᵀEv, whose deviation is one entry's.
    """
    if dtype not in FLOATS or stats.sigma_min == 0:
        return None
    entry = stats.frobenius / math.sqrt(math.prod(stats.shape))
    return FLOATS[dtype].unit_roundoff / math.sqrt(6) * entry / stats.sigma_min
