"""Many clips transcribed: in groups that ranks share out, of each group the pieces in batches of like length.

Groups and batches are a function of the list alone, so that no text depends on the number of ranks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from kappaspeech.errors import DataError
from kappaspeech.evaluation.clips import Clip
from kappaspeech.evaluation.decoding import Decoded
from kappaspeech.evaluation.transcribe import Transcriber
from kappaspeech.evaluation.transcripts import Segment, Transcript
from kappaspeech.ranks.agreement import agree
from kappaspeech.ranks.cluster import Cluster
from kappaspeech.speech.pauses import is_silence
from kappaspeech.speech.samples import SAMPLE_RATE_HZ, AudioSample, cut_at_pauses

# enough that batches are of like length, few enough that a kill costs little
_BATCHES_A_GROUP = 8
_TYPICAL_SECONDS = 10.0
# waveforms in memory, of pieces that wait: 230 MB
_MOST_WAITING_SECONDS = 3600.0


def make_groups(seconds: Sequence[float], *, batch_size: int) -> list[range]:
    """Consecutive clips of about so many seconds each, in groups of some batches; a longer clip is a group of its own."""
    most_clips, most_seconds = _BATCHES_A_GROUP * batch_size, _BATCHES_A_GROUP * batch_size * _TYPICAL_SECONDS
    groups: list[range] = []
    first, total = 0, 0.0
    for index, length in enumerate(seconds):
        if index > first and (index - first == most_clips or total + length > most_seconds):
            groups.append(range(first, index))
            first, total = index, 0.0
        total += length
    return [*groups, range(first, len(seconds))] if first < len(seconds) else groups


def without_first(groups: Sequence[range], count: int) -> list[range]:
    """The same groups without the first `count` clips."""
    return [range(max(group.start, count), group.stop) for group in groups if group.stop > count]


def in_rounds(
    groups: Sequence[range], cluster: Cluster, transcribe: Callable[[range], list[Transcript]]
) -> Iterator[list[Transcript]]:
    """`transcribe` each group on one rank; yield the transcripts in the order of the clips, on every rank. A collective."""
    for first in range(0, len(groups), cluster.world_size):
        mine = groups[first + cluster.rank : first + cluster.rank + 1]
        shares = agree(cluster, partial(_each, mine, transcribe))
        yield [transcript for share in shares for transcript in share]


def _each(groups: Sequence[range], transcribe: Callable[[range], list[Transcript]]) -> list[Transcript]:
    return [found for group in groups for found in transcribe(group)]


@dataclass(frozen=True)
class _Piece:
    """A piece of clip number `clip`, from `start` samples on."""

    clip: int
    start: int
    sample: AudioSample


def transcribe_clips(
    clips: Sequence[Clip],
    transcriber: Transcriber,
    *,
    read: Callable[[Clip], NDArray[np.float32]],
    longest_seconds: float,
    instruction: str | None = None,
    on_longest: Callable[[float], None] = lambda _seconds: None,
    advance: Callable[[float], None] = lambda _seconds: None,
) -> list[Transcript]:
    """Cut clips at their pauses and decode the pieces; a clip that can't be read has its error for a transcript, and a piece of
    digital silence has no segment.

    `on_longest` gets the length of the longest piece before it is decoded, `advance` the seconds that were.
    """
    longest = min(longest_seconds, transcriber.encoder.dims.max_seconds)
    segments: list[list[Segment]] = [[] for _ in clips]
    lengths, errors = [0] * len(clips), [""] * len(clips)
    waiting: list[_Piece] = []

    def decode() -> None:
        if not waiting:
            return
        on_longest(max(len(piece.sample.waveform) for piece in waiting) / SAMPLE_RATE_HZ)
        found = transcriber.decode_all([piece.sample for piece in waiting], advance=advance)
        for piece, decoded in zip(waiting, found, strict=True):
            segments[piece.clip].append(_segment(piece, decoded))
        waiting.clear()

    for number, clip in enumerate(clips):
        try:
            waveform = read(clip)
        except DataError as error:
            errors[number] = str(error)
            continue
        for piece in cut_at_pauses(waveform, longest_seconds=longest):
            # a model asked for the words of no sound makes some up
            if not is_silence(piece):
                waiting.append(_Piece(number, lengths[number], AudioSample(clip.name, piece, "", clip.language, instruction)))
            lengths[number] += len(piece)
        if sum(len(piece.sample.waveform) for piece in waiting) > _MOST_WAITING_SECONDS * SAMPLE_RATE_HZ:
            decode()
    decode()
    return [
        Transcript(clip.name, tuple(parts), length / SAMPLE_RATE_HZ, clip.language, error or None)
        for clip, parts, length, error in zip(clips, segments, lengths, errors, strict=True)
    ]


def _segment(piece: _Piece, decoded: Decoded) -> Segment:
    end = piece.start + len(piece.sample.waveform)
    return Segment(
        piece.start / SAMPLE_RATE_HZ,
        end / SAMPLE_RATE_HZ,
        decoded.text,
        decoded.confidence,
        decoded.ending,
        decoded.num_tokens,
    )
