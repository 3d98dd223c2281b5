"""DeepSpeed's reduce-scatter and its gather of many are replaced for tensors on processors, for as long as an engine is open."""

from __future__ import annotations

from types import SimpleNamespace

import torch

from kappaspeech.zero3.processor_exchange import ProcessorExchange
from tests.gloo_threads import with_groups


def test_deepspeed_averages_by_this_projects_exchange_until_it_is_closed(monkeypatch):
    from deepspeed.runtime.comm import coalesced_collectives
    from deepspeed.runtime.zero import stage3

    own = coalesced_collectives.reduce_scatter_coalesced
    elsewhere: list[torch.device] = []
    monkeypatch.setattr(
        coalesced_collectives, "reduce_scatter_coalesced", lambda tensors, _group: elsewhere.append(tensors[0].device)
    )
    exchange = ProcessorExchange()
    try:

        def work(group):
            tensors = [torch.full((5,), float(group.rank())), torch.full((2, 2), 3.0 * group.rank())]
            return [part.tolist() for part in stage3.reduce_scatter_coalesced(tensors, group)]

        assert with_groups(2, work) == [[[0.5] * 3, [1.5] * 2], [[0.5] * 2, [1.5] * 2]]
        assert elsewhere == []
        stage3.reduce_scatter_coalesced([torch.ones(1, device="meta")], object())
        assert elsewhere == [torch.device("meta")]
    finally:
        exchange.close()
    monkeypatch.undo()
    assert coalesced_collectives.reduce_scatter_coalesced is own


def test_deepspeed_gathers_by_this_projects_exchange_what_is_on_processors_and_unquantised(monkeypatch):
    from deepspeed.runtime.zero.partition_parameters import Init

    elsewhere: list[tuple[int, bool]] = []
    monkeypatch.setattr(
        Init, "_allgather_params_coalesced", own := lambda _init, given, _, quantize: elsewhere.append((len(given), quantize))
    )
    exchange = ProcessorExchange()
    try:

        def work(group):
            init = make_init(group, "cpu")
            parameters = [
                make_parameter(values, shape, group.rank()) for values, shape in (([1, 2, 3], (3,)), ([4, 5, 6, 7], (2, 2)))
            ]
            init._allgather_params_coalesced(parameters, 0, quantize=False)
            return [parameter.data.tolist() for parameter in parameters]

        # the last part of the first is padded
        assert with_groups(2, work) == [[[1, 2, 3], [[4, 5], [6, 7]]]] * 2
        assert elsewhere == []

        def work_elsewhere(group):
            parameters = [make_parameter([1, 2], (2,), group.rank())]
            make_init(group, "cpu")._allgather_params_coalesced(parameters, 0, quantize=True)
            make_init(group, "cuda")._allgather_params_coalesced(parameters, 0, quantize=False)
            make_init(group, "cpu")._allgather_params_coalesced([], 0, quantize=False)

        with_groups(1, work_elsewhere)
        assert sorted(elsewhere) == [(0, False), (1, False), (1, True)]
    finally:
        exchange.close()
    assert Init._allgather_params_coalesced is own


def make_init(group, device: str):
    """As much of DeepSpeed's `Init` as its gathering looks at."""
    from deepspeed.runtime.zero.partition_parameters import Init

    init = object.__new__(Init)
    init.local_device = torch.device(device)
    init.get_partition_dp_group = lambda _parameter: group
    return init


def make_parameter(values: list[int], shape: tuple[int, ...], rank: int):
    """A parameter in two partitions, of which this is the rank's."""
    length = -(-len(values) // 2)
    part = torch.tensor(values + [0] * (2 * length - len(values)))[rank * length : (rank + 1) * length]
    return SimpleNamespace(ds_tensor=part, ds_numel=len(values), ds_shape=torch.Size(shape), data=torch.empty(0))
