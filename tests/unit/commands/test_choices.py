from __future__ import annotations

import pytest

from kappaspeech.commands.choices import either


@pytest.mark.parametrize(("names", "said"), [("a", "a"), ("ab", "a or b"), ("abc", "a, b or c")])
def test_choices_are_said_as_a_sentence_has_them(names, said):
    assert either(iter(names)) == said
