"""The surroundings of a run on this rank, from before its models are read until its folder is closed."""

from __future__ import annotations

from dataclasses import dataclass

from kappaspeech.ranks.cluster import TrainingCluster
from kappaspeech.ranks.liveness import Watch
from kappaspeech.runs.folder import RunFolder
from kappaspeech.runs.lease import Lease
from kappaspeech.training.phases import PhaseClock
from kappaspeech.training.stopping import StopRequest


@dataclass(frozen=True)
class Surroundings:
    """The other ranks, the run's folder and its holder, this rank's phase, its wish to stop, and its watch."""

    cluster: TrainingCluster
    folder: RunFolder
    lease: Lease
    phases: PhaseClock
    stop: StopRequest
    watch: Watch

    @property
    def is_writer(self) -> bool:
        """Return whether this rank writes the results of all; no collective may depend on it."""
        return self.cluster.rank == 0

    def wants_to_stop(self) -> bool:
        """Show a sign of life in work that ranks do without each other, and return whether any rank wishes to stop."""
        self.phases.tick()
        self.watch.check()
        return self.stop.reason() is not None or any(post.get("wish") for post in self.watch.posts)
