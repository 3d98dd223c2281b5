"""Scores come from one table: what joins it orders candidates."""

from __future__ import annotations

import numpy as np
import pytest

from kappaspeech.errors import SelectionError
from kappaspeech.scan.ranking import KappaRanking, RankedMatrix
from kappaspeech.scan.scores import SCORES
from kappaspeech.scan.spectrum import spectrum_stats
from kappaspeech.selection.rules import Count
from kappaspeech.selection.select import select


def ranking() -> KappaRanking:
    weights = {"narrow.weight": np.diag([2.0, 1.0]), "wide.weight": np.diag([9.0, 3.0, 3.0])}
    matrices = [RankedMatrix(name, name, weight.shape, "float64", spectrum_stats(weight)) for name, weight in weights.items()]
    return KappaRanking.of("m", "c" * 64, method="svd", rtol=1e-6, matrices=matrices, skipped=[])


def test_a_score_that_joins_the_table_orders_a_selection(monkeypatch):
    assert select(ranking(), Count(1)).names == ("narrow.weight",)
    monkeypatch.setitem(SCORES, "narrowness", lambda stats: 1 / min(stats.shape))
    chosen = select(ranking(), Count(1), score="narrowness")
    assert (chosen.names, chosen.rule) == (("wide.weight",), "1 smallest by narrowness")


def test_a_score_that_is_none_is_refused_with_those_that_are():
    with pytest.raises(SelectionError, match=r"'narrowness'.*kappa, kappa-nonzero"):
        select(ranking(), Count(1), score="narrowness")
