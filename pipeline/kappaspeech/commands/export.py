"""`kappaspeech export`: a run as a model folder that needs neither the run nor DeepSpeed, or what it trained alone."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from kappaspeech.escaping import for_terminal


class Part(str, Enum):
    """The parts that may be exported alone."""

    difference = "difference"


def export(
    run: Annotated[Path, typer.Argument(help="The run's folder, or a difference (--only difference).")],
    output: Annotated[Path, typer.Argument(help="The folder to make.")],
    step: Annotated[str | None, typer.Option(help="The checkpoint's step, or best. Default: the last.")] = None,
    only: Annotated[
        Part | None, typer.Option(help="difference: the trained tensors alone, to be put together with the base model later.")
    ] = None,
    base: Annotated[str | None, typer.Option(help="The base model, if it has moved since the training.")] = None,
) -> None:
    """Write the trained LLM as transformers loads it, with its tokenizer, and the adaptor."""
    from kappaspeech.errors import InputError
    from kappaspeech.outputs import try_folder
    from kappaspeech.training.export import export as run_export
    from kappaspeech.training.export import export_difference
    from kappaspeech.training.trained_run import parse_step

    if only and base:
        raise InputError("--base names the model to merge with, which --only difference doesn't do: leave it out.")
    try_folder(output)
    written = (
        export_difference(run, output, step=parse_step(step))
        if only
        else run_export(run, output, step=parse_step(step), base=base)
    )
    for path in written:
        print(for_terminal(str(path)))
