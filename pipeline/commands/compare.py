"""`kappaspeech compare`: runs side by side."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def compare(
    runs: Annotated[list[Path], typer.Argument(help="Folders of finished runs; differences are against the first.")],
    output: Annotated[Path, typer.Option(help="Where the report goes.")] = Path("comparison"),
) -> None:
    """Put runs into one table and plot. Runs that differ in more than the tensors they unfreeze are refused."""
    from rich.console import Console
    from rich.table import Table

    from pipeline.comparison.report import table, write_report
    from pipeline.comparison.runs import check_comparable, read_run

    summaries = [read_run(path) for path in runs]
    check_comparable(summaries)
    paths = write_report(summaries, output)
    header, rows = table(summaries)
    # a column an arm: runs are few, and what is said of each is much
    shown = Table(*("", *(row[0] for row in rows)))
    for index, name in enumerate(header[1:], start=1):
        shown.add_row(name, *(row[index] for row in rows))
    Console().print(shown)
    for path in paths:
        print(path)
