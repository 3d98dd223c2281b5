"""`kappaspeech scan`: rank a checkpoint's tensors by condition number."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def scan(
    model: Annotated[str, typer.Argument(help="A folder or file of safetensors, or a hub id.")],
    output: Annotated[Path, typer.Option(help="Where the ranking goes.")] = Path("ranking.json"),
    rtol: Annotated[float, typer.Option(help="Relative tolerance of κ.")] = 1e-6,
) -> None:
    """Rank a model's tensors by condition number κ = σ_max/σ_min."""
    from pipeline.cluster import start_cluster
    from pipeline.scan import open_checkpoint
    from pipeline.scan import scan as run_scan

    cluster = start_cluster()
    ranking = run_scan(open_checkpoint(model), cluster=cluster, rtol=rtol)
    if cluster.rank == 0:
        ranking.write(output)
        print(f"{len(ranking.matrices)} matrices ranked, {len(ranking.skipped)} tensors not: {output}")
    cluster.close()
