"""DeepSpeed's reduce-scatter is replaced for tensors on processors, for as long as an engine is open."""

from __future__ import annotations

import torch

from kappaspeech.zero3.gradient_means import GradientMeans
from tests.gloo_threads import with_groups


def test_deepspeed_averages_by_this_projects_exchange_until_it_is_closed(monkeypatch):
    from deepspeed.runtime.comm import coalesced_collectives
    from deepspeed.runtime.zero import stage3

    own = coalesced_collectives.reduce_scatter_coalesced
    elsewhere: list[torch.device] = []
    monkeypatch.setattr(
        coalesced_collectives, "reduce_scatter_coalesced", lambda tensors, _group: elsewhere.append(tensors[0].device)
    )
    means = GradientMeans()
    try:

        def work(group):
            tensors = [torch.full((5,), float(group.rank())), torch.full((2, 2), 3.0 * group.rank())]
            return [part.tolist() for part in stage3.reduce_scatter_coalesced(tensors, group)]

        assert with_groups(2, work) == [[[0.5] * 3, [1.5] * 2], [[0.5] * 2, [1.5] * 2]]
        assert elsewhere == []
        stage3.reduce_scatter_coalesced([torch.ones(1, device="meta")], object())
        assert elsewhere == [torch.device("meta")]
    finally:
        means.close()
    monkeypatch.undo()
    assert coalesced_collectives.reduce_scatter_coalesced is own
