from __future__ import annotations

import pytest
import typer

from kappaspeech.commands.numbers import finite


def test_a_number_and_none_stay_as_they_are():
    assert [finite(value) for value in (1.5, -1e300, 0.0, None)] == [1.5, -1e300, 0.0, None]


@pytest.mark.parametrize("text", ["inf", "-inf", "nan"])
def test_what_python_reads_as_a_number_and_is_none_is_refused(text):
    with pytest.raises(typer.BadParameter, match=f"{text} is no finite number"):
        finite(float(text))
