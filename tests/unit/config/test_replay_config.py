"""The configuration's section on replayed text."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from kappaspeech.config.replay_config import ReplayConfig


def test_replay_is_of_the_texts_themselves_unless_an_anchor_is_asked_for():
    found = ReplayConfig(texts={"de": "de.txt"})
    assert (found.weight, found.anchor_weight) == (1.0, 0.0)
    assert ReplayConfig(texts={"de": "de.txt"}, weight=0.0, anchor_weight=0.5).anchor_weight == 0.5


@pytest.mark.parametrize(
    "changes", [{"weight": 0.0}, {"texts": {}}, {"max_tokens": 1}, {"anchor_weight": -1.0}, {"forgetting_budget_nats": 0.1}]
)
def test_what_would_change_nothing_or_make_no_sense_is_refused(changes):
    with pytest.raises(ValidationError):
        ReplayConfig(**{"texts": {"de": "de.txt"}, **changes})
