"""`kappaspeech doctor`: whether this machine, or all of a launch's, can train what a configuration asks for."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from kappaspeech.diagnosis.finding import Finding

_MARKS = {"ok": "ok     ", "warning": "warning", "problem": "PROBLEM"}


def doctor(
    config: Annotated[Path | None, typer.Argument(help="A run's YAML, whose models and data are checked too.")] = None,
    set_: Annotated[list[str] | None, typer.Option("--set", help="Change a value, as for train. May be repeated.")] = None,
    world_size: Annotated[
        int | None, typer.Option(min=1, help="The number of ranks it will run on. Default: this launch's.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the findings as JSON, and nothing else.")] = False,
) -> int:
    """Look for what makes trainings fail: versions, compiler, locks, disk, ports, GPUs, dtype, data, models. Exit 1 on a problem.

    Under a launcher every rank looks at its own host, and rank 0 tells which hosts differ.
    """
    from kappaspeech.commands.train import read_settings
    from kappaspeech.errors import ConfigError

    if set_ and config is None:
        raise ConfigError("--set changes a configuration, and none is given.")
    settings = read_settings(config, None, set_ or []) if config else None
    from kappaspeech.diagnosis.arithmetic import check_dtype
    from kappaspeech.diagnosis.examination import examine, report_rank
    from kappaspeech.diagnosis.finding import combine
    from kappaspeech.ranks.agreement import agreement
    from kappaspeech.ranks.start import start_cluster

    cluster = start_cluster()
    findings: list[Finding] = []
    with agreement(cluster):
        if cluster.local_rank == 0:
            # the others are on the same host
            findings = examine(settings, world_size=world_size or cluster.world_size, launched=cluster.world_size > 1)
    findings += check_dtype(settings, cluster)
    combined = combine(report_rank(cluster, findings))
    with agreement(cluster):
        if cluster.rank == 0:
            _print_json(combined) if as_json else _print(combined)
    cluster.close()
    return 1 if any(finding.status == "problem" for finding in combined) else 0


def _print_json(findings: list[Finding]) -> None:
    import json
    from dataclasses import asdict

    print(json.dumps({"schema_version": 1, "findings": [asdict(finding) for finding in findings]}, indent=1))


def _print(findings: list[Finding]) -> None:
    from kappaspeech.escaping import for_terminal

    for finding in findings:
        print(for_terminal(f"{_MARKS[finding.status]}  {finding.area}: {finding.found}"))
        if finding.remedy:
            print(for_terminal(f"{'':9}→ {finding.remedy}"))
    counts = {status: sum(finding.status == status for finding in findings) for status in ("problem", "warning", "ok")}
    print(f"{counts['problem']} problem(s), {counts['warning']} warning(s), {counts['ok']} ok")
