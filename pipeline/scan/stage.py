"""Stage 1: list a checkpoint's matrices, share them among the ranks, measure each, gather one ranking."""

from __future__ import annotations

import math

from pipeline.cluster import Cluster, SingleProcess, agreement
from pipeline.errors import ScanError
from pipeline.scan.checkpoint import Checkpoint
from pipeline.scan.dtypes import FLOATS
from pipeline.scan.matrices import MatrixRef, SkippedTensor, StoredMatrix, list_matrices
from pipeline.scan.partition import plan
from pipeline.scan.ranking import KappaRanking, RankedMatrix
from pipeline.scan.spectrum import DEFAULT_RTOL, Method, SpectrumStats, measure


def scan(
    checkpoint: Checkpoint, *, cluster: Cluster | None = None, rtol: float = DEFAULT_RTOL, method: Method = "auto"
) -> KappaRanking:
    """Measure every matrix of `checkpoint`, κ to `rtol`. A collective: every rank calls it, and every rank gets the ranking."""
    cluster = cluster or SingleProcess()
    matrices, skipped = list_matrices(checkpoint)
    tasks = plan([ref.shape for ref in matrices], [1] * len(matrices), world_size=cluster.world_size)
    ranked: list[RankedMatrix] = []
    invalid: list[SkippedTensor] = []
    with agreement(cluster):
        while (ticket := cluster.take_ticket("scan")) < len(tasks):
            ref = matrices[tasks[ticket].matrix]
            try:
                ranked.append(describe(ref, measure(StoredMatrix(checkpoint, ref), rtol=rtol, method=method)))
            except ScanError as error:
                invalid.append(SkippedTensor(ref.name, ref.tensor.shape, str(error)))
    gathered = cluster.gather((ranked, invalid))
    return KappaRanking.of(
        checkpoint.where,
        checkpoint.digest,
        method=method,
        rtol=rtol,
        matrices=(matrix for share, _ in gathered for matrix in share),
        skipped=[*skipped, *(tensor for _, share in gathered for tensor in share)],
    )


def describe(ref: MatrixRef, stats: SpectrumStats) -> RankedMatrix:
    """A measured matrix with what its checkpoint says of it."""
    suffix = "" if ref.expert is None else f"[{ref.expert}]"
    return RankedMatrix(
        name=ref.name,
        parameter=ref.tensor.name,
        shape=ref.tensor.shape,
        dtype=ref.tensor.dtype,
        stats=SpectrumStats(**{**stats.__dict__, "shape": ref.shape}),
        expert=ref.expert,
        aliases=tuple(alias + suffix for alias in ref.tensor.aliases),
        storage_noise=storage_noise(stats, ref.tensor.dtype),
    )


def storage_noise(stats: SpectrumStats, dtype: str) -> float | None:
    """One standard deviation of what rounding to `dtype` does to σ_min, relative to it.

    A number stored with unit roundoff u is off by an error of relative standard deviation u/√6 (uniform within half a unit in
    the last place, averaged over the binade); to first order σ_min moves by uᵀEv, which has one entry's standard deviation.
    """
    if dtype not in FLOATS or stats.sigma_min == 0:
        return None
    entry = stats.frobenius / math.sqrt(math.prod(stats.shape))
    return FLOATS[dtype].unit_roundoff / math.sqrt(6) * entry / stats.sigma_min
