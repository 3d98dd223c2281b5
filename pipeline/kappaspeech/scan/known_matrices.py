"""Matrices that a journal knows: not by their names, which another checkpoint in its folder may share, but by their bytes."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

from kappaspeech.errors import ScanError
from kappaspeech.progress import ProgressBar
from kappaspeech.ranks.cluster import Cluster
from kappaspeech.ranks.liveness import Watch
from kappaspeech.scan.checkpoint import Checkpoint
from kappaspeech.scan.matrices import MatrixRef, digest_matrix
from kappaspeech.scan.partition import assign, reading_cost


def digest_known(
    checkpoint: Checkpoint, cluster: Cluster, refs: Sequence[MatrixRef], *, watch: Watch, shown: bool
) -> dict[str, str]:
    """Digests of those of `refs` that have values in the journal. The shares of work depend on whether the bytes are the same.

    A collective. Reading takes a hundredth of the time that measuring takes; bytes read here aren't read again for it.
    """
    if not refs:
        return {}
    costs = [reading_cost(ref.shape) for ref in refs]
    share = assign(costs, cluster.world_size)[cluster.rank]
    own: dict[str, str] = {}
    total = sum(costs[index] for index in share)
    with ProgressBar("comparing with the journal", total=total, shown=shown and cluster.rank == 0) as bar:
        for index in share:
            watch.check()
            watch.begin(refs[index].name)
            with naming(checkpoint, refs[index]):
                own[refs[index].name] = digest_matrix(checkpoint, refs[index])
            bar.advance(costs[index])
        watch.begin("")
    return {name: digest for found in cluster.gather(own) for name, digest in found.items()}


@contextlib.contextmanager
def naming(checkpoint: Checkpoint, ref: MatrixRef) -> Iterator[None]:
    """Add to a failed read the tensor and the file that it was reading."""
    try:
        yield
    except (OSError, MemoryError) as error:
        file = checkpoint.file_of(ref.stored_name)
        raise ScanError(f"{ref.name} in {file} couldn't be measured: {error or type(error).__name__}.") from error
