"""OSF under ZeRO-3: after each update the kept singular directions of each trained matrix are put back as they were.

Each rank holds the directions of its share of the matrices, and projects these for all.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from kappaspeech.model.kept_directions import KeptDirections, find_directions
from kappaspeech.model.tensor_digests import share_out
from kappaspeech.ranks.cluster import Cluster
from kappaspeech.zero3.engine import TrainingEngine
from kappaspeech.zero3.whole_tensors import gather_whole, put_whole


def keep_directions(
    engine: TrainingEngine, *, share: float, cluster: Cluster, on_progress: Callable[[], None] = lambda: None
) -> None:
    """Keep from now on the top `share` of the directions that the LLM's trained tensors have now. For before any step and any
    resume. A collective.

    The weights are projected and not their gradients, since AdamW turns a projected gradient out of its plane again.
    """
    trained = engine.states.llm_tensors()
    owners = share_out([int(item.parameter.ds_numel) for item in trained], cluster.world_size)
    mine = {}
    for place, (item, owner) in enumerate(zip(trained, owners, strict=True)):
        whole = gather_whole(item.parameter)
        if owner == cluster.rank:
            # a GPU has no room for the rank's whole share in float32
            mine[place] = whole.cpu()
        on_progress()
    # all ranks at once
    directions: dict[int, KeptDirections] = {}
    for place in list(mine):
        directions[place] = find_directions(mine.pop(place).to(engine.device), share=share)
        on_progress()

    def restore() -> None:
        for place, (item, owner) in enumerate(zip(trained, owners, strict=True)):
            whole = gather_whole(item.parameter)
            if owner == cluster.rank:
                whole = directions[place].restore(whole).contiguous()
            if cluster.world_size > 1:
                torch.distributed.broadcast(whole, src=owner)
            put_whole(item.parameter, whole, rank=cluster.rank)

    engine.after_updates(restore)
