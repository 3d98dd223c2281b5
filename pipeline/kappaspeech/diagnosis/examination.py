"""All checks of one rank, and the ranks' reports brought together."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Sequence

from kappaspeech.config.run_config import RunConfig
from kappaspeech.diagnosis.configuration import check_configuration, resumes
from kappaspeech.diagnosis.finding import Finding, RankReport
from kappaspeech.diagnosis.host import check_host
from kappaspeech.diagnosis.packages import check_packages
from kappaspeech.ranks.cluster import Cluster
from kappaspeech.ranks.hosts import software

_NUM_CLOCK_ROUNDS = 5


def examine(config: RunConfig | None, *, world_size: int, launched: bool) -> list[Finding]:
    """All findings on this host, of the host itself and of what `config` names."""
    findings = [*check_packages(), *check_host(os.environ, launched=launched)]
    if config is not None:
        findings += [*check_configuration(config, world_size=world_size, environment=os.environ), *resumes(config)]
    return findings


def report_rank(cluster: Cluster, findings: Sequence[Finding]) -> list[RankReport]:
    """Every rank's report, on every rank. A collective.

    Clocks are read right after a barrier, some times over: the round that shows the smallest difference was disturbed least.
    """
    rounds = []
    for _ in range(_NUM_CLOCK_ROUNDS):
        cluster.barrier()
        rounds.append(cluster.gather(time.time()))
    clocks = min(rounds, key=lambda clocks: max(clocks) - min(clocks))
    report = RankReport(socket.gethostname(), tuple(findings), software(), clocks[cluster.rank])
    return cluster.gather(report)
