"""Ranks that a hub connects; here they are threads of one process, with their own ends of the hub's sockets."""

from __future__ import annotations

import json

import numpy as np
import pytest

from tests.rank_threads import RankThreads, together


@pytest.fixture
def connect():
    with RankThreads() as ranks:
        yield ranks.connect


def test_ranks_gather_and_broadcast_in_their_order_as_often_as_they_like(connect):
    clusters = connect(3)

    def work(cluster):
        return [cluster.gather((cluster.rank, turn)) for turn in range(20)], cluster.broadcast(cluster.rank, source=2)

    assert together(clusters, work) == [([[(rank, turn) for rank in range(3)] for turn in range(20)], 2)] * 3


def test_tickets_are_given_once_and_by_queue(connect):
    clusters = connect(3)
    found = together(clusters, lambda cluster: [cluster.take_ticket("scan") for _ in range(10)])
    assert sorted(ticket for tickets in found for ticket in tickets) == list(range(30))
    assert clusters[1].take_ticket("other") == 0


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_an_array_reaches_the_rank_that_it_is_for_alone(connect, dtype):
    array = np.asfortranarray(np.random.default_rng(0).normal(size=(40, 40)), dtype)

    def work(cluster):
        return [cluster.move(array if cluster.rank == 1 else None, source=1, target=target) for target in (2, 1)]

    zeroth, first, second = together(connect(3), work)
    assert zeroth == [None, None]
    assert first[0] is None
    assert first[1] is array
    np.testing.assert_array_equal(second[0], array)
    assert second[0].dtype == array.dtype
    assert second[0].flags.f_contiguous
    assert second[1] is None


def test_a_rank_that_ends_is_an_error_in_whoever_waits_for_it(connect):
    clusters = connect(3)

    def work(cluster):
        if cluster.rank == 1:
            cluster.close()
            return None
        return cluster.gather(0)

    zeroth, _, second = together(clusters, work)
    for error in (zeroth, second):
        assert isinstance(error, RuntimeError)
        assert str(error) == "a rank ended before all had gathered"
    with pytest.raises(RuntimeError, match="a rank ended before it had sent"):
        clusters[0].move(None, source=1, target=0)


def test_the_first_rank_to_go_is_told_of_in_its_own_post(connect):
    clusters = connect(3)
    for cluster in clusters:
        cluster.post(json.dumps({"doing": f"matrix {cluster.rank}", "cause": None}))
    assert [json.loads(post)["cause"] for post in clusters[0].read_posts()] == [None] * 3
    clusters[2].close()
    with pytest.raises(RuntimeError):
        clusters[0].gather(0)
    told = [json.loads(post)["cause"] for post in clusters[0].read_posts()]
    assert told == [None, None, ["it ended without a word while measuring matrix 2", 1]]
