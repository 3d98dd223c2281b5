"""Which host is the odd one."""

from __future__ import annotations

import pytest

from kappaspeech.ranks.cluster import SingleProcess
from kappaspeech.ranks.hosts import check_alike, describe_clocks, describe_difference, software


def test_the_minority_differs_even_where_it_holds_rank_0():
    everywhere = [("h1", {"torch": "2.12"}), ("h2", {"torch": "2.13"}), ("h3", {"torch": "2.13"})]
    assert describe_difference(everywhere, 0) == "torch is 2.12 on h1, and 2.13 on h2 (rank 1)"
    assert describe_difference(everywhere, 1) is None
    assert describe_difference(everywhere, 2) is None


def test_between_two_the_one_without_rank_0_is_named():
    everywhere = [("h1", {"torch": "2.13", "numpy": "2"}), ("h2", {"torch": "2.12", "numpy": "1"})]
    assert describe_difference(everywhere, 0) is None
    difference = describe_difference(everywhere, 1)
    assert difference == "torch is 2.12 on h2, and 2.13 on h1 (rank 0); numpy is 1 on h2, and 2 on h1 (rank 0)"


def test_one_process_is_like_itself():
    check_alike(SingleProcess(), software(), remedy="none")


@pytest.mark.parametrize(("seconds", "words"), [(90.0, "90 s ahead of"), (-90.0, "90 s behind"), (4.0, None)])
def test_a_clock_apart_is_told_with_its_skew(seconds, words):
    lines = describe_clocks([("h1", 1000.0), ("h1", 1000.1), ("h2", 1000.0 + seconds)])
    assert [words in line and line.startswith("the clock of h2") for line in lines] == ([True] if words else [])
