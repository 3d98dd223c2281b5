"""The trained states' parts that need no ranks."""

from __future__ import annotations

import pytest

from kappaspeech.zero3.trained_states import average_decay


def test_a_moving_average_soon_forgets_where_it_began():
    decays = [average_decay(update, decay=0.999) for update in (1, 10, 100, 10_000)]
    assert decays == pytest.approx([2 / 11, 11 / 20, 101 / 110, 0.999])
