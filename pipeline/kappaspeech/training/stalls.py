"""Stalls of a run, in which ranks make no progress: who waits for whom, and the place of each one."""

from __future__ import annotations

import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from kappaspeech.errors import RankFailure
from kappaspeech.escaping import for_line, for_terminal
from kappaspeech.ranks import flight_recorder
from kappaspeech.ranks.cluster import Cluster
from kappaspeech.ranks.liveness import Post, Watch, voice
from kappaspeech.training.phases import PhaseClock

# A process that is alive posts each second. Swapping, a long call that holds the interpreter, or a network that is down for a
# moment may keep it from that; a minute of silence is none of these.
_LONGEST_SILENCE_SECONDS = 60.0
# Loading a replica, scoring long texts or writing to a slow disk shows no sign of life for longer than a step's phases.
_SLOW_PHASES = ("evaluation", "checkpoint")
_SLOW_FACTOR = 4
_NUM_KEYS = 3
_MAX_KEY_LETTERS = 60
_NUM_FRAMES = 8
_NUM_LISTED = 32
# well below the grace after which a process is ended
_DUMP_SECONDS = 3.0


class StallJudge:
    """A judge of stalls: how long no rank has made progress, and for whom the run waits. It holds what it has seen.

    Before the first step and after the last nothing is judged: loading a large model has no limit. Evaluations and checkpoints
    have four times the limit.
    """

    def __init__(self, stall_seconds: float) -> None:
        self._stall_seconds = stall_seconds
        self._seen: list[Any] = []
        self._moved_seconds = self._asked_seconds = -float("inf")

    def judge(self, posts: Sequence[Post], now_seconds: float) -> RankFailure | None:
        """Take in the ranks' posts at `now_seconds`; return the failure, if this is a stall, of the rank furthest behind."""
        standing = [post.get("at") for post in posts]
        # asked late: this process itself was held up, so that nothing it has missed meanwhile is evidence
        late = now_seconds - self._asked_seconds > self._stall_seconds / 2
        self._asked_seconds = now_seconds
        if late or standing != self._seen or not all(at and at[0] is not None for at in standing):
            self._seen, self._moved_seconds = standing, now_seconds
        still_seconds = now_seconds - self._moved_seconds
        limit_seconds = self._stall_seconds * (_SLOW_FACTOR if any(at and at[1] in _SLOW_PHASES for at in standing) else 1)
        if still_seconds <= limit_seconds:
            return None
        behind = find_behind(posts)
        rank = behind[0] if behind else 0
        who = f"the others wait for rank {', '.join(map(str, behind))}" if behind else "all ranks wait at the same point"
        return RankFailure(
            rank,
            f"no rank has made progress for {still_seconds:.0f} s (training.stall_seconds is {self._stall_seconds:g}): {who}, in "
            f"{posts[rank]['doing']}",
            host=posts[rank]["place"][0] if posts[rank].get("place") else None,
        )


def find_behind(posts: Sequence[Post]) -> list[int]:
    """The ranks that have passed fewest phases, for which the others wait; none if all have passed the same number."""
    turns = [post["at"][2] if post.get("at") else -1 for post in posts]
    return [rank for rank, turn in enumerate(turns) if turn == min(turns)] if len(set(turns)) > 1 else []


def tell_standings(posts: Sequence[Post]) -> str:
    """A line a rank: step, phase, since when, samples, and whether it waits or is waited for. Of many, those waited for first."""
    behind = set(find_behind(posts))
    ranks = sorted(range(len(posts)), key=lambda rank: (rank not in behind, rank))
    lines = []
    for rank in sorted(ranks[:_NUM_LISTED]):
        post = posts[rank]
        if not post.get("at"):
            lines.append(f"  rank {rank}: has said nothing yet")
            continue
        host = post["place"][0] if post.get("place") else "?"
        keys = f", samples {', '.join(map(for_line, post['keys']))}" if post["keys"] else ""
        role = (
            ""
            if not behind
            else ", is waited for"
            if rank in behind
            else f", waits for rank {', '.join(map(str, sorted(behind)[:4]))}"
        )
        lines.append(f"  rank {rank} on {host}: {post['doing']} for {post['for']:.0f} s{role}{keys}")
    left_out = len(posts) - len(lines)
    return "\n".join([*lines, *([f"  … and {left_out} more ranks"] if left_out else [])])


def watch_training(
    cluster: Cluster,
    phases: PhaseClock,
    *,
    stall_seconds: float,
    collective_timeout_seconds: float,
    wish: Callable[[], str | None],
    on_fatal: Callable[[RankFailure], None],
    collectives: Path,
) -> Watch:
    """A watch under which a rank that is dead, stopped or stuck ends all, after a report of each one's place.

    `wish` is this rank's wish to stop, which the others can read. A silent rank is known as such by the time that a collective
    times out. The ranks leave their last collectives in the folder `collectives`.
    """
    stalls = StallJudge(stall_seconds)
    main_thread = threading.get_ident()

    def describe() -> Post:
        mark = phases.mark
        doing = mark.phase if mark.step is None else f"step {mark.step}, {mark.phase}"
        keys = [key[-_MAX_KEY_LETTERS:] for key in mark.keys[:_NUM_KEYS]]
        more = [f"… {len(mark.keys) - _NUM_KEYS} more"] if len(mark.keys) > _NUM_KEYS else []
        at = [mark.step, mark.phase, phases.num_turns, phases.num_ticks]
        return {"doing": doing, "at": at, "for": time.monotonic() - mark.began_seconds, "keys": keys + more, "wish": wish()}

    def tell(failure: RankFailure, posts: Sequence[Post]) -> None:
        # a rank that failed by itself has reported its cause; the others' places are then of no interest
        if posts[failure.rank].get("cause") is not None:
            return
        if cluster.rank == voice(failure):
            print(for_terminal(f"what each rank does:\n{tell_standings(posts)}"), file=sys.stderr, flush=True)
        if cluster.rank in find_behind(posts)[:1]:
            frame = sys._current_frames().get(main_thread)
            stack = "".join(traceback.format_stack(frame)[-_NUM_FRAMES:])
            print(for_terminal(f"rank {cluster.rank}, which the others wait for, is here:\n{stack}"), file=sys.stderr, flush=True)
        # a file system that hangs may be the very cause
        writer = threading.Thread(target=_leave_collectives, args=(collectives, cluster, voice(failure)), daemon=True)
        writer.start()
        writer.join(_DUMP_SECONDS)

    return Watch(
        cluster,
        describe=describe,
        judge=lambda posts: stalls.judge(posts, time.monotonic()),
        on_failure=tell,
        on_fatal=on_fatal,
        silence_seconds=min(_LONGEST_SILENCE_SECONDS, stall_seconds, collective_timeout_seconds),
        needs_parent=False,
    )


def _leave_collectives(folder: Path, cluster: Cluster, speaker: int) -> None:
    backends = flight_recorder.dump(folder, cluster.rank)
    if backends and cluster.rank == speaker:
        print(for_terminal(flight_recorder.tell_reader(folder, backends)), file=sys.stderr, flush=True)
