"""`kappaspeech show`: a ranking for people, spreadsheets and data frames."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from kappaspeech.scan.ranking import KappaRanking

_ROWS = 10
# a narrower terminal has no room for shapes and bounds
_WIDE_COLUMNS = 60


def show(
    ranking: Annotated[Path, typer.Argument(help="The ranking, from `kappaspeech scan`.")],
    selection: Annotated[Path | None, typer.Option(help="Mark what this selection chose.")] = None,
    rows: Annotated[
        int | None, typer.Option(min=0, help="Rows of the table, from either end. Default: 10; all that is piped.")
    ] = None,
    score: Annotated[str, typer.Option(help="The score that orders table and picture: see `kappaspeech select`.")] = "kappa",
    as_json: Annotated[bool, typer.Option("--json", help="Print all rows as JSON, and nothing else.")] = False,
    csv: Annotated[Path | None, typer.Option(help="Write all rows as CSV.")] = None,
    parquet: Annotated[Path | None, typer.Option(help="Write all rows as Parquet (needs pyarrow).")] = None,
    spectra: Annotated[Path | None, typer.Option(help="Spectra from `scan --spectrum`, for the picture.")] = None,
    picture: Annotated[Path | None, typer.Option(help="Draw it: .png, .svg or .pdf.")] = None,
) -> None:
    """Print both ends of a ranking as a table; write all rows as CSV or Parquet; draw it.

    Into a pipe it prints tab-separated values with whole names.
    """
    from kappaspeech.escaping import for_terminal
    from kappaspeech.needed_packages import need
    from kappaspeech.outputs import try_output

    if parquet is not None:
        need("--parquet", "pyarrow")
    if picture is not None:
        need("--picture", "matplotlib")
    from kappaspeech.scan import table as tables
    from kappaspeech.scan.picture import write_picture
    from kappaspeech.scan.ranking import KappaRanking
    from kappaspeech.scan.scores import check_score
    from kappaspeech.selection.tensor_selection import TensorSelection

    check_score(score)
    outputs = [path for path in (csv, parquet, picture) if path is not None]
    for path in outputs:
        try_output(path)
    content = KappaRanking.read(ranking)
    if spectra is not None:
        content = content.with_spectra(spectra)
    selected = None
    if selection is not None:
        chosen = TensorSelection.read(selection)
        selected = set(chosen.names)
        if chosen.checkpoint_digest != content.checkpoint_digest:
            told = f"{selection} was chosen from {chosen.model}, another checkpoint than {ranking} ranks: it is marked by name"
            print(for_terminal(f"warning: {told}"), file=sys.stderr)
    listed = tables.rows(content, score=score)
    if as_json:
        _print_json(content, listed, selected)
    elif sys.stdout.isatty():
        _print_table(content, _ends(listed, _ROWS if rows is None else rows), len(listed), selected, score=score)
    else:
        _print_lines(listed if rows is None else _ends(listed, rows), selected, score=score)
    if csv is not None:
        tables.write_csv(content, csv)
    if parquet is not None:
        tables.write_parquet(content, parquet)
    if picture is not None:
        write_picture(content, picture, score=score, selected=sorted(selected or ()))
    # standard output holds nothing but rows for another program
    stream = sys.stderr if as_json else sys.stdout
    for path in outputs:
        print(for_terminal(str(path)), file=stream)


def _ends(listed: list[dict[str, Any]], rows: int) -> list[dict[str, Any]]:
    return listed if len(listed) <= 2 * rows else [*listed[:rows], *listed[len(listed) - rows :]]


def _is_selected(row: dict[str, Any], selected: set[str]) -> bool:
    """Return whether a row is selected: of fused experts a selection names one, or the whole tensor."""
    return row["name"] in selected or row["parameter"] in selected


def _print_json(content: KappaRanking, listed: Sequence[dict[str, Any]], selected: set[str] | None) -> None:
    import json
    import math

    rows = [
        {key: None if isinstance(value, float) and not math.isfinite(value) else value for key, value in row.items()}
        | ({} if selected is None else {"selected": _is_selected(row, selected)})
        for row in listed
    ]
    print(json.dumps({"schema_version": 1, "model": content.model, "rows": rows}, indent=1))


def _print_lines(listed: Sequence[dict[str, Any]], selected: set[str] | None, *, score: str) -> None:
    """Print tab-separated rows for `sort`, `cut` and data frames: names and numbers whole."""
    from kappaspeech.escaping import for_column

    key = f"score_{score.replace('-', '_')}"
    columns = ["rank", "name", "shape", "kappa", "log2_volume", "error_bound", *([key] if score != "kappa" else [])]
    print("\t".join([*columns, *(["selected"] if selected is not None else [])]))
    for row in listed:
        cells = ["inf" if row[column] is None else str(row[column]) for column in columns]
        if selected is not None:
            cells.append("yes" if _is_selected(row, selected) else "no")
        print("\t".join(map(for_column, cells)))


def _print_table(
    content: KappaRanking, listed: Sequence[dict[str, Any]], count: int, selected: set[str] | None, *, score: str
) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    from kappaspeech.escaping import for_table
    from kappaspeech.scan.places import short_names
    from kappaspeech.scan.summary import format_kappa

    console = Console()
    is_wide = console.width >= _WIDE_COLUMNS
    key = f"score_{score.replace('-', '_')}"
    by = "κ" if score == "kappa" else score
    shown = Table(title=for_table(f"{count} matrices of {content.model}, by {by}"), box=box.SIMPLE_HEAD, pad_edge=False)
    headings = ["rank", "tensor", *(["shape"] if is_wide else []), "κ", *(["score"] if score != "kappa" else [])]
    headings += ["± (relative)"] * is_wide + ["selected" if is_wide else "sel"] * (selected is not None)
    for heading in headings:
        shown.add_column(heading, justify="left" if heading == "tensor" else "right", overflow="fold")
    names = short_names(row["name"] for row in listed)
    for row in listed:
        cells = [row["rank"], names[row["name"]], *([row["shape"]] if is_wide else []), format_kappa(row["kappa"])]
        cells += [format_kappa(row[key])] if score != "kappa" else []
        cells += [f"{row['error_bound']:.0e}"] if is_wide else []
        cells += ["yes" if _is_selected(row, selected) else ""] if selected is not None else []
        shown.add_row(*map(for_table, cells))
    console.print(shown)
