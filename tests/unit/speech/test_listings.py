"""Samples that a list beside their tar describes: what is decoded of a member, and what a part is as a file of its own."""

from __future__ import annotations

import numpy as np
import pytest

from kappaspeech.speech.listings import Listing, decode_listed, encode_listed
from kappaspeech.speech.samples import BadSampleError, decode
from tests.speech_files import clip

CONTENT = clip(2.0, seed=3)
WHOLE = Listing("a", "said")
PART = Listing("a", "said", 0.5, 1.0)


def test_all_of_a_member_is_what_it_decodes_to_and_its_own_file():
    np.testing.assert_array_equal(decode_listed(CONTENT, WHOLE, 2.0), decode(CONTENT))
    assert encode_listed(CONTENT, WHOLE, 2.0) == CONTENT


def test_a_part_is_that_part_and_a_file_of_it_decodes_to_it():
    part = decode_listed(CONTENT, PART, 1.0)
    np.testing.assert_array_equal(part, decode(CONTENT)[8_000:24_000])
    np.testing.assert_allclose(decode(encode_listed(CONTENT, PART, 1.0)), part, atol=2**-15)
    np.testing.assert_array_equal(decode_listed(CONTENT, Listing("a", "said", 1.5), 0.5), decode(CONTENT)[24_000:])


@pytest.mark.parametrize(
    ("content", "listing", "seconds", "cause"),
    [
        (CONTENT, WHOLE, 4.0, "truncated"),
        (CONTENT, WHOLE, 1.0, "length"),
        (CONTENT, Listing("a", "said", 1.5, 2.0), 2.0, "truncated"),
        (CONTENT[: len(CONTENT) // 2], PART, 1.0, "decode"),
        (b"no audio", PART, 1.0, "decode"),
    ],
)
def test_a_member_that_is_not_what_the_list_says_is_a_bad_sample(content, listing, seconds, cause):
    with pytest.raises(BadSampleError) as raised:
        decode_listed(content, listing, seconds)
    assert raised.value.cause == cause
