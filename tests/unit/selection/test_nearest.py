from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kappaspeech.errors import SelectionError
from kappaspeech.selection.candidates import Candidate
from kappaspeech.selection.nearest import take_nearest


def candidates(sizes: list[int]) -> list[Candidate]:
    return [Candidate(f"t{place}", (size,), float(place), 1.0) for place, size in enumerate(sizes)]


def take(sizes: list[int], target: int) -> list[str]:
    return [item.name for item in take_nearest(candidates(sizes), target)]


def test_a_budget_that_is_met_takes_the_first():
    assert take([3, 4, 5, 6], 7) == ["t0", "t1"]


def test_tensors_are_exchanged_where_that_comes_nearer():
    # the budget alone takes 4, and 3 is too much beside it
    assert take([4, 3, 3], 6) == ["t1", "t2"]
    # above the target is as good as below it
    assert take([10, 1], 9) == ["t0"]
    # to add one late tensor disturbs no more than it must
    assert take([5, 2, 2], 7) == ["t0", "t1"]


def test_tensors_of_which_none_comes_near_are_refused():
    with pytest.raises(SelectionError, match="more than twice 4 parameters"):
        take([9, 10], 4)


@given(st.lists(st.integers(1, 30), min_size=1, max_size=8), st.integers(1, 100))
def test_no_one_move_comes_nearer(sizes, target):
    try:
        names = take(sizes, target)
    except SelectionError:
        # nothing is as near as the nearest tensor
        assert min(sizes) >= 2 * target
        return
    chosen = [f"t{place}" in names for place in range(len(sizes))]
    distance = abs(target - sum(size for size, is_chosen in zip(sizes, chosen, strict=True) if is_chosen))
    changes = [-size if is_chosen else size for size, is_chosen in zip(sizes, chosen, strict=True)]
    total = sum(size for size, is_chosen in zip(sizes, chosen, strict=True) if is_chosen)
    exchanges = [a + b for i, a in enumerate(changes) for b in changes[:i] if a * b < 0]
    assert all(abs(target - total - change) >= distance for change in [*changes, *exchanges])
    assert take(sizes, target) == names
