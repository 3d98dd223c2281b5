"""A job of many clips on all ranks: shared out, watched, with progress, each round's transcripts kept before the next begins."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from kappaspeech.evaluation.clip_groups import in_rounds, make_groups, transcribe_clips, without_first
from kappaspeech.evaluation.clips import Clip, ClipReader
from kappaspeech.evaluation.report import real_time_factor
from kappaspeech.evaluation.transcribe import Transcriber
from kappaspeech.evaluation.transcripts import Transcript
from kappaspeech.progress import ProgressBar
from kappaspeech.ranks.agreement import agreement
from kappaspeech.ranks.cluster import Cluster
from kappaspeech.ranks.liveness import Watch


@dataclass(frozen=True)
class Speed:
    """The audio that a job decoded, and the time that it took, reading included."""

    audio_seconds: float
    decode_seconds: float

    @property
    def real_time_factor(self) -> float:
        """Seconds that one of audio takes."""
        return real_time_factor(self.audio_seconds, self.decode_seconds)


class _Progress:
    """Seconds of clips that are done, of all ranks, on a bar."""

    def __init__(self, bar: ProgressBar, watch: Watch, *, is_alone: bool) -> None:
        self._bar, self._watch, self._is_alone = bar, watch, is_alone
        self._shown = 0.0

    def advance(self, seconds: float) -> None:
        self._watch.advance(seconds)
        if self._is_alone:
            self._bar.advance(seconds)

    def show(self, seconds: float) -> None:
        """Show the sum over all ranks."""
        self._bar.advance(seconds - self._shown)
        self._shown = seconds


def run_job(
    clips: Sequence[Clip],
    transcriber: Transcriber,
    *,
    cluster: Cluster,
    reader: ClipReader,
    longest_seconds: float,
    instruction: str | None = None,
    num_done: int = 0,
    keep: Callable[[Sequence[Transcript]], None],
    warn: Callable[[float], str | None] = lambda _seconds: None,
) -> Speed:
    """Transcribe `clips` but for the first `num_done`, and `keep` the transcripts on rank 0, in their order. A collective, of a
    `patient` cluster.

    `warn` gets the length of the longest piece that was met, until it has something to say.
    """
    groups = without_first(make_groups([clip.seconds for clip in clips], batch_size=transcriber.batch_size), num_done)
    lengths = [clip.seconds for clip in clips]
    is_warned = False

    def tell(seconds: float) -> None:
        nonlocal is_warned
        if not is_warned and cluster.rank == 0 and (warning := warn(seconds)) is not None:
            is_warned = True
            bar.say(warning)

    def transcribe(group: range) -> list[Transcript]:
        left = sum(lengths[index] for index in group)

        def advance(seconds: float) -> None:
            nonlocal left
            watch.check()
            # what a list or a header says of lengths was a guess
            counted = min(seconds, left)
            left -= counted
            progress.advance(counted)

        found = transcribe_clips(
            [clips[index] for index in group],
            transcriber,
            read=reader.read,
            longest_seconds=longest_seconds,
            instruction=instruction,
            on_longest=tell,
            advance=advance,
        )
        progress.advance(left)
        return found

    began, audio_seconds = time.monotonic(), 0.0
    total, before = sum(lengths), sum(lengths[:num_done])
    with Watch(cluster) as watch, ProgressBar("transcribe", total=total, done=before, shown=cluster.rank == 0) as bar:
        progress = _Progress(bar, watch, is_alone=cluster.world_size == 1)
        with watch.telling(progress.show):
            for transcripts in in_rounds(groups, cluster, transcribe):
                audio_seconds += sum(transcript.seconds for transcript in transcripts)
                with agreement(cluster):
                    if cluster.rank == 0:
                        pieces = (part for item in transcripts for part in item.segments)
                        tell(max((part.end_seconds - part.start_seconds for part in pieces), default=0.0))
                        keep(transcripts)
    return Speed(audio_seconds, time.monotonic() - began)
