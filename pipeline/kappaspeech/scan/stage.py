"""Stage 1: list a checkpoint's matrices, share them among the ranks, measure each, gather one ranking."""

from __future__ import annotations

import base64
import math
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from kappaspeech.escaping import make_logger
from kappaspeech.host_memory import free_memory_bytes
from kappaspeech.progress import ProgressBar
from kappaspeech.ranks.agreement import agree, agreement
from kappaspeech.ranks.cluster import Cluster, SingleProcess
from kappaspeech.ranks.hosts import check_alike, check_software
from kappaspeech.ranks.liveness import Watch
from kappaspeech.scan.checkpoint import Checkpoint
from kappaspeech.scan.journal import Found, Journal
from kappaspeech.scan.known_matrices import digest_known
from kappaspeech.scan.matrices import MatrixRef, SkippedTensor, list_matrices
from kappaspeech.scan.partition import memory_limits
from kappaspeech.scan.ranking import KappaRanking, RankedMatrix
from kappaspeech.scan.spectrum import DEFAULT_RTOL, Method, choose_algebra
from kappaspeech.scan.worker import ScanOptions, Worker

_log = make_logger(__name__)


def scan(
    checkpoint: Checkpoint,
    *,
    cluster: Cluster | None = None,
    rtol: float = DEFAULT_RTOL,
    method: Method = "auto",
    is_static: bool = False,
    with_sigmas: bool = False,
    device: str | None = None,
    journal: Path | None = None,
    shows_progress: bool = False,
) -> KappaRanking:
    """Measure every matrix of `checkpoint`, κ to `rtol`, and rank them. A collective: every rank gets the same ranking.

    Matrices are taken from a common queue, the costliest first, or assigned beforehand if `is_static`. `journal` is a folder in
    which measured matrices are kept and found again. `with_sigmas` keeps every singular value (`spectra`). `device` is torch's
    name of one to compute on; `cuda` means a rank's own. A matrix with NaN or infinity is listed as skipped. Raises `ScanError`
    naming the tensor that can't be read, `RankFailure` on the other ranks, `InputError` for an absent device, `ConfigError` if
    ranks have other checkpoints, options or software.
    """
    cluster = cluster or SingleProcess()
    options = ScanOptions(rtol, method, is_static, with_sigmas, own_device(device, cluster.local_rank) if device else None)
    check_software(cluster)
    with agreement(cluster):
        algebra = choose_algebra(options.device)
        matrices, skipped = list_matrices(checkpoint)
        found_here = {"the checkpoint": checkpoint.digest}
    # ranks that differ would divide other work, or measure parts of two models
    check_alike(cluster, found_here, remedy="Copy it from one place to all hosts, or share it.")
    check_alike(cluster, options.settings(), remedy="Give it to all ranks alike.")
    limits = _share_memory(cluster, matrices, on_device=device is not None)
    with agreement(cluster):
        book = Journal(journal, checkpoint, **options.journal_key()) if journal else None
        found = book.read() if book else {}
    kept: Found = {}
    for share in cluster.gather(found):
        for key, values in share.items():
            kept.setdefault(key, {}).update(values)
    results: dict[str, dict[str, Any]] = {}
    known = [ref for ref in matrices if book and book.key(ref) in kept]
    with Watch(cluster) as watch:
        digests = digest_known(checkpoint, cluster, known, watch=watch, shown=shows_progress)
        worker = Worker(checkpoint, cluster, options, algebra, watch, book, matrices, kept, digests, limits)
        total = sum(task.cost for task in worker.tasks)
        with ProgressBar("scanning", total=total, shown=shows_progress and cluster.rank == 0) as bar:
            own = worker.run(bar)
    for share in cluster.gather(own):
        results.update(share)
    if book:
        book.close()
    ranked, invalid, spectra = [], [], {}
    for ref in matrices:
        value = results[ref.name]
        if "invalid" in value:
            invalid.append(SkippedTensor(ref.name, ref.tensor.shape, value["invalid"]))
        else:
            ranked.append(RankedMatrix.from_json(value, is_trusted=True))
            if with_sigmas:
                spectra[ref.name] = np.frombuffer(base64.b64decode(value["sigmas"]), dtype="<f4")
    return KappaRanking.of(
        checkpoint.where,
        checkpoint.digest,
        method=method,
        rtol=rtol,
        matrices=ranked,
        skipped=[*skipped, *invalid],
        spectra=spectra,
        gguf_architecture=checkpoint.gguf_architecture,
    )


def _share_memory(cluster: Cluster, matrices: Sequence[MatrixRef], *, on_device: bool) -> list[float]:
    """The most bytes that a matrix may take of each rank; rank 0 says on which hosts not all ranks take all. A collective."""
    if cluster.world_size == 1 or on_device:
        return [math.inf] * cluster.world_size
    hosts, free = zip(*agree(cluster, lambda: (socket.gethostname(), free_memory_bytes())), strict=True)
    limits = memory_limits([ref.shape for ref in matrices], hosts=hosts, free_bytes=free)
    for host in dict.fromkeys(hosts) if cluster.rank == 0 else ():
        ranks = [rank for rank, name in enumerate(hosts) if name == host]
        limit = min(limits[rank] for rank in ranks)
        if math.isfinite(limit):
            _log.warning(
                "%d of %d ranks on %s measure matrices that take more than %.1f GB: %.1f GB of memory are free there.",
                sum(math.isinf(limits[rank]) for rank in ranks), len(ranks), host, limit / 1e9,
                min(free[rank] for rank in ranks) / 1e9,
            )  # fmt: skip
    return limits


def own_device(device: str, local_rank: int) -> str:
    """`cuda` as the rank's own GPU, in turns if there are more ranks than GPUs; any other name as it is."""
    import torch

    if device != "cuda" or not torch.cuda.is_available():
        return device
    return f"cuda:{local_rank % torch.cuda.device_count()}"
