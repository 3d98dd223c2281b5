"""Messages of errors: whole as far as anybody reads them."""

from __future__ import annotations

from kappaspeech.errors import InputError


def test_of_a_message_that_nobody_could_read_the_middle_is_left_out():
    short = "x" * 10_000
    assert str(InputError(short)) == short
    message = str(InputError("the file is " + "v" * 5_000_000 + ". Make it again."))
    assert message.startswith("the file is vvv")
    assert "(4,990,028 characters left out)" in message
    assert message.endswith("vvv. Make it again.")
    assert len(message) < 10_100
