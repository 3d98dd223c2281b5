"""The part of a file that a list means."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from kappaspeech.speech.listed_audio import cut_segment
from kappaspeech.speech.recordings import Recording
from kappaspeech.speech.samples import SAMPLE_RATE_HZ, BadSampleError

SECOND = np.arange(SAMPLE_RATE_HZ, dtype=np.float32) / SAMPLE_RATE_HZ


def part(begin: float, seconds: float | None) -> Recording:
    return Recording("k", Path("a.wav"), "", "", begin, seconds)


def test_a_segment_is_cut_by_its_times_and_its_end_may_be_rounded():
    assert np.array_equal(cut_segment(SECOND, part(0.25, 0.5)), SECOND[4_000:12_000])
    assert np.array_equal(cut_segment(SECOND, part(0.5, None)), SECOND[8_000:])
    assert len(cut_segment(SECOND, part(0.5, 0.55))) == 8_000


@pytest.mark.parametrize(
    ("begin", "seconds", "cause"),
    # of the last one a tenth of a second is listed, and the file holds a fiftieth
    [(1.0, None, "truncated"), (0.5, 0.7, "truncated"), (0.5, 0.05, "short"), (0.98, 0.1, "short")],
)
def test_what_a_file_does_not_hold_is_refused(begin, seconds, cause):
    with pytest.raises(BadSampleError, match=cause):
        cut_segment(SECOND, part(begin, seconds))


def test_a_silent_part_is_refused_as_a_silent_file_is():
    half_silent = np.where(np.arange(SAMPLE_RATE_HZ) < SAMPLE_RATE_HZ // 2, np.float32(0), SECOND)
    with pytest.raises(BadSampleError, match="silent"):
        cut_segment(half_silent, part(0.0, 0.5))
    assert len(cut_segment(half_silent, part(0.25, 0.5))) == SAMPLE_RATE_HZ // 2
