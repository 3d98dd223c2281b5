"""A ranking as rows: for a terminal, for CSV, for Parquet."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

from kappaspeech.artefacts import write_text, write_with
from kappaspeech.escaping import for_cell
from kappaspeech.needed_packages import need
from kappaspeech.scan.ranking import KappaRanking
from kappaspeech.scan.scores import SCORES
from kappaspeech.selection.candidates import module_type


def rows(ranking: KappaRanking, *, score: str = "kappa") -> list[dict[str, Any]]:
    """One flat row per matrix, by rank from 1 in order of `score`: the fields of ranking.json, module type, and every score."""
    table = []
    ordered = sorted(ranking.matrices, key=lambda matrix: (SCORES[score](matrix.stats), matrix.stats.kappa, matrix.name))
    for place, matrix in enumerate(ordered, start=1):
        content = matrix.to_json()
        # a cell can't hold a list
        flat = {key: "×".join(map(str, v)) if key.endswith("shape") else v for key, v in content.items() if key != "aliases"}
        scores = {f"score_{name.replace('-', '_')}": measure(matrix.stats) for name, measure in SCORES.items()}
        table.append({"rank": place, **flat, "module_type": module_type(matrix.parameter), **scores})
    return table


def write_csv(ranking: KappaRanking, path: Path) -> None:
    """Write the rows as CSV; an empty cell is a value that isn't there, `inf` an infinite score. A name that a spreadsheet
    would take for a formula has an apostrophe before it."""
    table = rows(ranking)
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(table[0]) if table else ["rank"], lineterminator="\n")
    writer.writeheader()
    writer.writerows({key: for_cell(value) for key, value in row.items()} for row in table)
    write_text(path, text.getvalue())


def write_parquet(ranking: KappaRanking, path: Path) -> None:
    """Write the rows as Parquet. Raises `InputError` if pyarrow isn't installed."""
    need("Parquet", "pyarrow")
    import pyarrow
    from pyarrow import parquet

    table = pyarrow.Table.from_pylist(rows(ranking))
    write_with(path, lambda temporary: parquet.write_table(table, temporary))
