"""The facts that must be alike on every rank before a step is worth anything, and the host that differs."""

from __future__ import annotations

import platform
import socket
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from kappaspeech.artefacts import digest_file, digest_lines
from kappaspeech.errors import ConfigError
from kappaspeech.escaping import for_terminal
from kappaspeech.package_versions import describe_versions
from kappaspeech.ranks.agreement import agreement
from kappaspeech.ranks.cluster import Cluster

_PACKAGES = ("torch", "deepspeed", "transformers", "tokenizers", "openai-whisper", "numpy")
_PACKAGE_FOLDER = Path(__file__).parents[1]
# Larger differences mix up logs, and file systems that compare times; smaller ones are the barrier's own.
MAX_CLOCK_SKEW_SECONDS = 5.0


def software() -> dict[str, str]:
    """The software of this rank: Python, the packages that compute, and this project's own code by its digest."""
    return {"Python": platform.python_version(), "kappaspeech's code": _own_code(), **describe_versions(_PACKAGES)}


def _own_code() -> str:
    files = sorted(_PACKAGE_FOLDER.rglob("*.py"))
    return digest_lines(f"{path.relative_to(_PACKAGE_FOLDER)} {digest_file(path)}" for path in files)


def check_alike(cluster: Cluster, facts: Mapping[str, str], *, remedy: str) -> None:
    """Raise on every rank, naming host and facts, if a rank's `facts` aren't those of most. A collective.

    If no value has a majority, rank 0's counts.
    """
    everywhere = cluster.gather((socket.gethostname(), dict(facts)))
    difference = describe_difference(everywhere, cluster.rank)
    with agreement(cluster):
        if difference is not None:
            raise ConfigError(f"{difference}. {remedy}")


def check_software(cluster: Cluster) -> None:
    """Raise on every rank if hosts have other `software`: ranks would divide other work. Those of one host share theirs. A
    collective."""
    if len(set(cluster.gather(socket.gethostname()))) > 1:
        check_alike(cluster, software(), remedy="Install the same on all hosts.")


def describe_difference(everywhere: Sequence[tuple[str, Mapping[str, str]]], rank: int) -> str | None:
    """Describe the difference of `rank`'s facts from the most frequent ones; `everywhere` has (host, facts) of each rank."""
    host, own = everywhere[rank]
    parts = []
    for name, value in own.items():
        counts = Counter(facts[name] for _, facts in everywhere)
        most = max(counts.values())
        usual = everywhere[0][1][name] if counts[everywhere[0][1][name]] == most else counts.most_common(1)[0][0]
        if value != usual:
            example, (other, _) = next((r, entry) for r, entry in enumerate(everywhere) if entry[1][name] == usual)
            parts.append(f"{name} is {value[:12]} on {host}, and {usual[:12]} on {other} (rank {example})")
    return "; ".join(parts) or None


def warn_of_clocks(cluster: Cluster) -> None:
    """Name on rank 0's standard error the hosts whose clocks differ from its own, and by how much. A collective."""
    cluster.barrier()
    times = cluster.gather((socket.gethostname(), time.time()))
    if cluster.rank == 0:
        for line in describe_clocks(times):
            print(for_terminal(f"warning: {line}"), file=sys.stderr, flush=True)


def describe_clocks(times: Sequence[tuple[str, float]]) -> list[str]:
    """A line for each host whose clock is further from rank 0's than `MAX_CLOCK_SKEW_SECONDS`; `times` is by rank."""
    reference, began = times[0]
    skews = {host: seconds - began for host, seconds in times}
    return [
        f"the clock of {host} is {abs(skew):.0f} s {'ahead of' if skew > 0 else 'behind'} that of {reference}; "
        "times in logs won't agree. Let NTP set it."
        for host, skew in skews.items()
        if abs(skew) > MAX_CLOCK_SKEW_SECONDS
    ]
