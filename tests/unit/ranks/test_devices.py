"""Ranks that share a GPU are found; slices of one, and processors, are no GPU that is shared."""

from __future__ import annotations

import pytest

from kappaspeech.ranks.cluster import SingleProcess
from kappaspeech.ranks.devices import describe_shared_gpu, identify_gpu, refuse_shared_gpu

GPU = ("6f1c", "NVIDIA H200")
SLICE = ("6f1c", "NVIDIA A100-SXM4-40GB MIG 1g.5gb")


@pytest.mark.parametrize(
    "places",
    [
        [("a", "1"), ("a", "2")],
        # NCCL compares the GPUs of one host
        [("a", "1"), ("b", "1")],
        # processors
        [("a", ""), ("a", "")],
        [("a", "1")],
    ],
)
def test_ranks_with_gpus_of_their_own_or_with_none_pass(places):
    assert describe_shared_gpu(places) is None


@pytest.mark.parametrize("places", [[("a", "1"), ("b", "6f1c"), ("b", "6f1c")], [("", ""), ("b", "6f1c"), ("b", "6f1c")]])
def test_ranks_of_a_host_that_share_a_gpu_are_named(places):
    told = describe_shared_gpu(places)
    assert told is not None
    assert told.startswith("Ranks 1 and 2 on b share the GPU 6f1c, ")


def test_a_gpu_is_known_by_its_uuid_however_it_is_made_visible():
    assert identify_gpu(*GPU, "0") == identify_gpu(*GPU, "GPU-6f1c") == identify_gpu(*GPU, "") == "6f1c"


def test_slices_of_a_gpu_are_told_apart_by_their_names_or_not_at_all():
    assert describe_shared_gpu([("a", identify_gpu(*SLICE, "MIG-1")), ("a", identify_gpu(*SLICE, "MIG-2"))]) is None
    assert describe_shared_gpu([("a", identify_gpu(*SLICE, "MIG-1"))] * 2) is not None
    # each rank in a container that shows it one slice
    assert describe_shared_gpu([("a", identify_gpu(*SLICE, ""))] * 2) is None


def test_one_rank_shares_nothing():
    refuse_shared_gpu(SingleProcess(), "6f1c")
