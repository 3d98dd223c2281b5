from __future__ import annotations

import math

import pytest
from pydantic import ValidationError

from kappaspeech.config.section import Count, NotNegative, Positive, StrictSection


class Section(StrictSection):
    count: Count = 1
    rate: Positive = 0.5
    weight: NotNegative = 0.0


@pytest.mark.parametrize(
    "values",
    [
        {"other": 1},
        {"count": "2"},
        {"count": True},
        {"count": 0},
        {"count": 1.0},
        {"rate": 0.0},
        {"rate": math.inf},
        {"rate": math.nan},
        {"weight": -1e-9},
        {"weight": "0"},
    ],
)
def test_an_unknown_key_another_type_and_a_number_out_of_range_are_refused(values):
    with pytest.raises(ValidationError) as caught:
        Section(**values)
    assert [error["loc"] for error in caught.value.errors()] == [tuple(values)]


def test_nothing_changes_later():
    section = Section(count=3, rate=1, weight=0)
    assert (section.count, section.rate, section.weight) == (3, 1.0, 0.0)
    with pytest.raises(ValidationError, match="frozen"):
        section.count = 4
