"""One thing that was looked at, and how many ranks' findings become one report. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from kappaspeech.ranks.hosts import MAX_CLOCK_SKEW_SECONDS
from kappaspeech.redaction import redact

Status = Literal["ok", "warning", "problem"]
# a version is shorter, and of a digest this is enough
_SHOWN_CHARACTERS = 16
_ORDER: tuple[Status, ...] = ("problem", "warning", "ok")


@dataclass(frozen=True)
class Finding:
    """`found` is what is there, `remedy` what to do about it; "" if nothing is to be done."""

    area: str
    status: Status
    found: str
    remedy: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "found", redact(self.found))
        object.__setattr__(self, "remedy", redact(self.remedy))


@dataclass(frozen=True)
class RankFindings:
    """One rank's findings about its own host; `versions` by name, as training compares them, and its clock at a common moment."""

    host: str
    findings: tuple[Finding, ...]
    versions: Mapping[str, str]
    clock_seconds: float


def combine(reports: Sequence[RankFindings]) -> list[Finding]:
    """All hosts' findings, each once, the worst first; one that not all share names its hosts. With them, what differs."""
    all_hosts = {report.host for report in reports}
    hosts: dict[Finding, set[str]] = {}
    for report in reports:
        for finding in report.findings:
            hosts.setdefault(finding, set()).add(report.host)
    findings = []
    for finding, where in hosts.items():
        named = "" if where == all_hosts else f" (on {', '.join(sorted(where))})"
        findings.append(Finding(finding.area, finding.status, finding.found + named, finding.remedy))
    findings += [*_compare_versions(reports), *_compare_clocks(reports)]
    return sorted(findings, key=lambda finding: _ORDER.index(finding.status))


def _compare_versions(reports: Sequence[RankFindings]) -> list[Finding]:
    findings = []
    for package in sorted({package for report in reports for package in report.versions}):
        by_version: dict[str, set[str]] = {}
        for report in reports:
            by_version.setdefault(report.versions.get(package, "none")[:_SHOWN_CHARACTERS], set()).add(report.host)
        if len(by_version) > 1:
            found = "; ".join(f"{version} on {', '.join(sorted(names))}" for version, names in sorted(by_version.items()))
            remedy = "Give all hosts one environment: a shared folder, a container, or the same pinned versions."
            findings.append(Finding("versions", "problem", f"{package} differs between hosts: {found}", remedy))
    return findings


def _compare_clocks(reports: Sequence[RankFindings]) -> list[Finding]:
    if len({report.host for report in reports}) < 2:
        return []
    clocks = sorted((report.clock_seconds, report.host) for report in reports)
    skew = clocks[-1][0] - clocks[0][0]
    found = f"clocks are {skew:.2f} s apart at most: {clocks[0][1]} is the slowest, {clocks[-1][1]} the fastest"
    if skew <= MAX_CLOCK_SKEW_SECONDS:
        return [Finding("clocks", "ok", found)]
    return [Finding("clocks", "warning", found, "Let NTP or chrony set them: else times of logs can't be compared.")]
