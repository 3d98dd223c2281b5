"""The configuration's section on CLASSP."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from kappaspeech.config.classp_config import ClasspConfig
from kappaspeech.zero3.classp import Classp


def test_the_section_is_what_the_optimizer_takes_and_its_defaults_are_adagrads():
    assert Classp(**ClasspConfig().model_dump()) == Classp(threshold=0.0, power=2.0, epsilon=1e-10)


@pytest.mark.parametrize("changes", [{"threshold": -1e-9}, {"power": 0.5}, {"epsilon": 1e-46}, {"power": float("nan")}])
def test_what_would_move_nothing_rightly_is_refused(changes):
    with pytest.raises(ValidationError):
        ClasspConfig(**changes)
