from __future__ import annotations

from typing import Any

import pytest

from kappaspeech.errors import DataError, RankFailure
from kappaspeech.ranks.agreement import agree
from kappaspeech.ranks.cluster import SingleProcess


class BesideAnother(SingleProcess):
    """Rank 0 of two, the other of which always brings the same."""

    def __init__(self, other: Any) -> None:
        super().__init__()
        self._other = other
        self.num_collectives = 0

    def gather(self, value: Any) -> list[Any]:
        self.num_collectives += 1
        return [value, self._other]


def fail() -> int:
    raise DataError("no shard")


def test_what_ranks_agree_on_travels_with_how_it_went():
    cluster = BesideAnother((None, 4))
    assert agree(cluster, lambda: 3) == [3, 4]
    assert cluster.num_collectives == 1


def test_a_rank_that_failed_raises_its_own_error_after_telling_the_others():
    cluster = BesideAnother((None, 4))
    with pytest.raises(DataError, match="no shard"):
        agree(cluster, fail)
    assert cluster.num_collectives == 1


def test_another_ranks_failure_is_raised_here_by_its_name():
    with pytest.raises(RankFailure, match="no shard") as caught:
        agree(BesideAnother((("no shard", 2, "host"), None)), lambda: 3)
    assert caught.value.exit_code == 2
