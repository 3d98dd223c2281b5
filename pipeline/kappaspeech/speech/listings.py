"""Samples of which a list beside the tar says what is said in them: their audio is a member of the tar, or a part of one."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from kappaspeech.speech.listed_audio import decode_whole, find_segment
from kappaspeech.speech.samples import check_whole, decode, encode


@dataclass(frozen=True)
class Listing:
    """A sample as a list has it: its member's name in the tar, without the ending; its transcript; and of the member the part
    from `begin_seconds` on, `seconds` long, which is None for all that follows."""

    member: str
    transcript: str
    begin_seconds: float = 0.0
    seconds: float | None = None

    @property
    def is_whole(self) -> bool:
        """False for a part of the member."""
        return self.seconds is None and not self.begin_seconds


def decode_listed(content: bytes, listing: Listing, seconds: float) -> NDArray[np.float32]:
    """The waveform (T,) of a sample `seconds` long, from its member's bytes; as `pack` takes it, but that a part may be silent:
    nothing is learned from it, yet a test set has no holes. Raises `BadSampleError`."""
    check_whole(content)
    if listing.is_whole:
        return decode_whole(content, seconds)
    return find_segment(decode(content), listing)


def encode_listed(content: bytes, listing: Listing, seconds: float) -> bytes:
    """A sample as a file of its own: its member's bytes, or of a part FLAC. Raises `BadSampleError`."""
    if listing.is_whole:
        return content
    return encode(decode_listed(content, listing, seconds))
