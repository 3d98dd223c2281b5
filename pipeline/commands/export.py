"""`kappaspeech export`: a run as a model folder that needs neither the run nor DeepSpeed."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def export(
    run: Annotated[Path, typer.Argument(help="The run's folder.")],
    output: Annotated[Path, typer.Argument(help="The folder to make.")],
    step: Annotated[int | None, typer.Option(help="The checkpoint's step.  [default: the last]")] = None,
) -> None:
    """Write the trained LLM as transformers loads it, the tokenizer, and the adaptor with all that it needs to be used."""
    from pipeline.training.export import export as run_export

    for path in run_export(run, output, step=step):
        print(path)
