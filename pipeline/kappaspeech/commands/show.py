"""`kappaspeech show`: a ranking for people, spreadsheets and data frames."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def show(
    ranking: Annotated[Path, typer.Argument(help="What `kappaspeech scan` wrote.")],
    selection: Annotated[Path | None, typer.Option(help="Mark what this selection chose.")] = None,
    rows: Annotated[int, typer.Option(min=0, help="Rows of the table, from either end.")] = 10,
    score: Annotated[str, typer.Option(help="What the picture shows, as in `kappaspeech select --score`.")] = "kappa",
    csv: Annotated[Path | None, typer.Option(help="Write all rows as CSV.")] = None,
    parquet: Annotated[Path | None, typer.Option(help="Write all rows as Parquet (needs pyarrow).")] = None,
    spectra: Annotated[Path | None, typer.Option(help="What `scan --spectrum` wrote, for the picture.")] = None,
    picture: Annotated[Path | None, typer.Option(help="Draw it: .png, .svg or .pdf.")] = None,
) -> None:
    """Print both ends of a ranking as a table; write all rows as CSV or Parquet; draw it."""
    from rich.console import Console
    from rich.table import Table

    from kappaspeech.escaping import for_table, for_terminal
    from kappaspeech.outputs import try_output
    from kappaspeech.scan import table as tables
    from kappaspeech.scan.picture import write_picture
    from kappaspeech.scan.ranking import KappaRanking
    from kappaspeech.selection.tensor_selection import TensorSelection

    outputs = [path for path in (csv, parquet, picture) if path is not None]
    for path in outputs:
        try_output(path)
    content = KappaRanking.read(ranking)
    if spectra is not None:
        content = content.with_spectra(spectra)
    selected = TensorSelection.read(selection).names if selection else ()
    everything = tables.rows(content)
    listed = everything if len(everything) <= 2 * rows else [*everything[:rows], *everything[len(everything) - rows :]]
    console = Console()
    shown = Table(title=for_table(f"{len(everything)} matrices of {content.model}, by κ"))
    for column in ("rank", "tensor", "shape", "κ", "Σ log₂ σ", "± (relative)", "selected"):
        shown.add_column(column, justify="left" if column == "tensor" else "right", overflow="fold")
    for row in listed:
        kappa = "∞" if row["kappa"] is None else f"{row['kappa']:.6g}"
        mark = "yes" if row["parameter"] in selected else ""
        cells = (row["rank"], row["name"], row["shape"], kappa, f"{row['log2_volume']:.5g}", f"{row['error_bound']:.0e}", mark)
        shown.add_row(*map(for_table, cells))
    console.print(shown)
    if csv is not None:
        tables.write_csv(content, csv)
    if parquet is not None:
        tables.write_parquet(content, parquet)
    if picture is not None:
        write_picture(content, picture, score=score, selected=selected)
    for path in outputs:
        print(for_terminal(str(path)))
