"""`kappaspeech export`: a run as a model folder that needs neither the run nor DeepSpeed, or a part of it."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kappaspeech.commands.best_step import warn_of_best
from kappaspeech.escaping import for_terminal

if TYPE_CHECKING:
    from kappaspeech.trained.opening import Step


class Part(str, Enum):
    """The parts that may be exported alone."""

    difference = "difference"
    llm = "llm"
    adaptor = "adaptor"


def export(
    run: Annotated[Path, typer.Argument(help="The run's folder, or a difference (--only difference).")],
    output: Annotated[Path, typer.Argument(help="The folder to make.")],
    step: Annotated[str | None, typer.Option(help="The checkpoint's step, or best. Default: the last.")] = None,
    whole: Annotated[
        bool,
        typer.Option("--whole", help="Encoder, adaptor and LLM as one model, which transformers loads by itself, with its code."),
    ] = False,
    only: Annotated[
        Part | None,
        typer.Option(
            help="difference: the trained tensors alone, to be put together with the base model later. llm, adaptor: that part."
        ),
    ] = None,
    base: Annotated[str | None, typer.Option(help="The base model, if it has moved since the training.")] = None,
) -> None:
    """Write the trained LLM as transformers loads it, with its tokenizer, and the adaptor; or --whole, one model that hears."""
    from kappaspeech.errors import InputError
    from kappaspeech.needed_packages import need
    from kappaspeech.outputs import try_folder

    if only in (Part.difference, Part.adaptor) and base:
        raise InputError(f"--base names the model to merge with, which --only {only.value} doesn't do: leave it out.")
    if only and whole:
        raise InputError(f"--whole writes all in one model, and --only {only.value} a part: give one of the two.")
    if whole:
        need("--whole", "jinja2", "transformers", "whisper")
    elif only in (None, Part.llm):
        need("kappaspeech export", "transformers")
    try_folder(output)
    from kappaspeech.trained.opening import parse_step

    chosen = parse_step(step)
    warn_of_best(run, chosen)
    for path in _write(run, output, chosen, whole=whole, only=only, base=base):
        print(for_terminal(str(path)))


def _write(run: Path, output: Path, step: Step, *, whole: bool, only: Part | None, base: str | None) -> list[Path]:
    from kappaspeech.trained import export as writing

    if whole:
        from kappaspeech.trained.card import make_card
        from kappaspeech.trained.whole import export_whole

        card = make_card(run, name=output.name, step=step, base=base)
        return export_whole(run, output, step=step, base=base, card=card)
    if only is Part.difference:
        return writing.export_difference(run, output, step=step)
    if only is Part.adaptor:
        return writing.export_adaptor(run, output, step=step)
    return writing.export(run, output, step=step, base=base, with_adaptor=only is not Part.llm)
